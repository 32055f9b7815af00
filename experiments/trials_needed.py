"""Print how many trials a search needs: until 99 % of what a run ten times as long reaches.

    python experiments/trials_needed.py
    python experiments/trials_needed.py --budget 10x --seeds 0 1 2

For each seed the project's search runs twice on the same few tokens, once with ten times the
trials. Both are studies of their own, so that the short run is what a user would have got. Measured
is the hypervolume on the selection text after each trial that was scored, also of those that were
stopped early. A study that is there already goes on where it stopped, so a second call only prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from own_search import add_arguments, own_search
from search_curves import hypervolumes

SHARE = 0.99  # of the long run's hypervolume
TIMES = 10
WANTED = 40  # trials, at most


def first_reaching(curve: Sequence[float], target: float) -> str:
    """Trials after which a curve has reached a target, in words."""
    reached = next((count for count, value in enumerate(curve, 1) if value >= target), None)
    return f"never in {len(curve)}" if reached is None else f"{reached}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, tokens=1_024)
    parser.add_argument("--budget", help="such as 10x; the whole range of sizes when left out")
    parser.add_argument("--trials", type=int, default=WANTED, help="of the short run (%(default)s)")
    parser.add_argument(
        "--times", type=int, default=TIMES, help="trials of the long run for each (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="several runs instead of one with --seed"
    )
    args = parser.parse_args()
    print(f"{'':<6}{'hypervolume':>20}{'':>12}{f'trials until {SHARE:.0%} of the long run':>40}")
    print(f"{'seed':<6}{'short':>10}{'long':>10}{'share':>12}{'short':>20}{'long':>20}", flush=True)
    for seed in args.seeds or [args.seed]:
        curves = []
        for trials in (args.trials, args.times * args.trials):
            own = own_search(args, args.budget, trials, seed)
            curves.append(hypervolumes(own.points, own.study.dense_bytes))
        short, long = curves
        needed = [first_reaching(curve, SHARE * long[-1]) for curve in curves]
        print(
            f"{seed:<6}{short[-1]:>10.4f}{long[-1]:>10.4f}{short[-1] / long[-1]:>12.2%}"
            f"{needed[0]:>20}{needed[1]:>20}",
            flush=True,
        )
    print(f"wanted: at most {WANTED}")


if __name__ == "__main__":
    main()
