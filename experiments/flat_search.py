"""Compare the project's search with flat searches: one parameter for every matrix, no allocator.

    python experiments/flat_search.py
    python experiments/flat_search.py --budget 10x --variants tpe+uniform nsga2+uniform
    python experiments/flat_search.py --model DIR --data FILE --out curves

A flat search is a plain Optuna study with two objectives, the increase of log-perplexity and log2
of the bytes: the very plane in which hypervolumes are measured. Each matrix is one parameter, the
number of one of its undominated options. All searches see the same options, score the same tokens
and count evaluations alike; bytes are known in closed form, so plans over a budget are neither
evaluated nor counted.

A variant is a sampler (random, tpe, tpe-multivariate, nsga2), then ``-ordinal`` where an option's
number is an integer rather than a category, then ``+uniform`` where the uniform baselines that the
project's search begins with are its first evaluations too (on this menu: for each matrix the best
option that takes no more than the baseline one), or ``+allocated`` where it is given what the
project's allocator says at the start: its plans over the whole range of budgets.

The project's search also measures single options inside a compressed model before its trials; how
many evaluations that comes to is printed, and not part of its curve.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
from menu_levels import LevelMenu, Levels, Meter, limit_of, open_menu
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState
from own_search import add_arguments, own_search
from search_curves import Point, add_keeping, hypervolumes, kept_points, lowest_increases

from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.store import tensor_key

POPULATION = 20  # of NSGA-II; Optuna's 50 would leave it 16 generations in 800 evaluations
WORST_INCREASE = 10.0  # what a sampler is told of a plan that destroys the model
ALLOCATED_SHARES = (0.5, 0.35, 0.25, 0.18, 0.125, 0.1, 0.08, 0.06, 0.05)  # of the dense bytes
MOST_PROPOSALS = 100  # for each evaluation; a sampler that never finds a plan that fits is stopped
OWN = "the project's search"
WANTED_RATIO = 20  # evaluations that a flat search shall need for each of the project's
VARIANTS = (
    "random",
    "tpe",
    "nsga2",
    "random+uniform",
    "tpe+uniform",
    "tpe-multivariate-ordinal+uniform",
    "nsga2+uniform",
    "nsga2+allocated",
)


@dataclass(frozen=True)
class Variant:
    """One way of flat search; see the top of the file."""

    sampler: str
    ordinal: bool
    start: str

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read a name such as ``tpe-ordinal+uniform``."""
        sampler, _, start = name.partition("+")
        kind = sampler.removesuffix("-ordinal")
        if kind not in ("random", "tpe", "tpe-multivariate", "nsga2"):
            raise argparse.ArgumentTypeError(f"unknown sampler {kind!r}")
        if start not in ("", "uniform", "allocated"):
            raise argparse.ArgumentTypeError(f"unknown start {start!r}")
        return cls(kind, sampler != kind, start)

    @property
    def name(self) -> str:
        """What it is called."""
        start = f"+{self.start}" if self.start else ""
        return f"{self.sampler}{'-ordinal' * self.ordinal}{start}"

    def make_sampler(self, seed: int) -> BaseSampler:
        """Make Optuna's sampler, with its own settings but for the population."""
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        return optuna.samplers.TPESampler(seed=seed, multivariate=self.sampler != "tpe")

    def starts(self, menu: LevelMenu) -> list[Levels]:
        """The plans that are its first evaluations, each once."""
        plans: list[Levels] = []
        if self.start == "uniform":
            plans = [menu.matching(p) for _, p in baseline_plans(menu.inventory.layers)]
        if self.start == "allocated":
            dense = menu.inventory.dense_bytes
            plans = [menu.allocated(int(share * dense)) for share in ALLOCATED_SHARES]
        return list(dict.fromkeys(plans))


def flat_search(
    variant: Variant,
    menu: LevelMenu,
    measure: Callable[[Levels], Point],
    evaluations: int,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> list[Point]:
    """Search flat, and return what every evaluation came to.

    Fewer come back when the sampler hardly ever finds a plan within the limit.
    """
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=variant.make_sampler(seed)
    )
    for levels in variant.starts(menu):
        study.enqueue_trial(dict(zip(menu.names, levels, strict=True)))
    points: list[Point] = []
    for _ in range(MOST_PROPOSALS * evaluations):
        if len(points) == evaluations:
            break
        trial = study.ask()
        levels = suggest(trial, menu, variant.ordinal)
        size = menu.bytes(levels)
        if limit is not None:
            trial.set_constraint("memory", size / limit - 1)
            if size > limit:
                study.tell(trial, state=TrialState.PRUNED)
                continue
        points.append(measure(levels))
        told = points[-1].increase if math.isfinite(points[-1].increase) else WORST_INCREASE
        study.tell(trial, [min(told, WORST_INCREASE), math.log2(size)])
    return points


def suggest(trial: Trial, menu: LevelMenu, ordinal: bool) -> Levels:
    """Ask for the level of every matrix, as integers or as categories."""
    if ordinal:
        return tuple(
            trial.suggest_int(name, 0, count - 1)
            for name, count in zip(menu.names, menu.counts, strict=True)
        )
    return tuple(
        trial.suggest_categorical(name, list(range(count)))
        for name, count in zip(menu.names, menu.counts, strict=True)
    )


def first_at(curve: Sequence[float], target: float, *, rising: bool) -> int | None:
    """Evaluations after which a curve is as good as ``target``, if ever."""
    good = (value >= target if rising else value <= target for value in curve)
    return next((count for count, reached in enumerate(good, 1) if reached), None)


def print_curves(curves: Mapping[str, Sequence[float]], trials: int, *, rising: bool) -> None:
    """Print values of curves at some counts, and what each needs to reach the first one.

    Args:
        curves: by name; the project's search is called ``OWN``, if it is there.
        trials: of the project's search, that the others are held against.
        rising: whether more is better.
    """
    longest = max(map(len, curves.values()))
    counts = [count for count in (trials // 4, *(trials * 2**i for i in range(12))) if count]
    counts = [count for count in counts if count < longest] + [longest]
    target = curves[OWN][:trials][-1] if OWN in curves else None
    heading = "" if target is None else f"   as good as the project's after {trials}"
    print(f"{'after evaluations':<34}" + "".join(f"{count:>9}" for count in counts) + heading)
    for name, curve in curves.items():
        cells = [f"{curve[n - 1]:>9.4f}" if n <= len(curve) else f"{'':>9}" for n in counts]
        outcome = ""
        if target is not None and name != OWN:
            reached = first_at(curve, target, rising=rising)
            outcome = f"   never within {len(curve)}"
            if reached is not None:
                outcome = f"   after {reached} ({reached / trials:.1f} times as many)"
        print(f"{name:<34}" + "".join(cells) + outcome)
    if target is not None:
        print_verdict(target, {n: c for n, c in curves.items() if n != OWN}, trials, rising)


def print_verdict(
    target: float, flat: Mapping[str, Sequence[float]], trials: int, rising: bool
) -> None:
    """Print how the project's value compares with the flat ones after as many evaluations."""
    for count in (trials, max(map(len, flat.values()), default=0)):
        long_enough = {name: curve for name, curve in flat.items() if len(curve) >= count}
        values = {name: curve[count - 1] for name, curve in long_enough.items() if curve[count - 1]}
        if values:
            name = (max if rising else min)(values, key=lambda name: values[name])
            print(
                f"the project's after {trials} / the best flat search's after {count} ({name}): "
                f"{target / values[name]:.3f}"
            )
    print(
        f"wanted: {'above' if rising else 'below'} 1 after as many; and flat searches as good only "
        f"after {WANTED_RATIO} times as many evaluations, or never"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, tokens=2_048)
    parser.add_argument("--budget", help="such as 10x; the whole range of sizes when left out")
    parser.add_argument("--trials", type=int, default=40, help="of the project's search (40)")
    parser.add_argument(
        "--evaluations", type=int, default=800, help="of each flat search (%(default)s)"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        type=Variant.parse,
        default=[Variant.parse(name) for name in VARIANTS],
        metavar="VARIANT",
        help=f"flat searches to run ({' '.join(VARIANTS)})",
    )
    add_keeping(parser)
    parser.add_argument("--flat-only", action="store_true", help="without the project's search")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    session, menu = open_menu(args)
    limit = limit_of(args.budget, menu)
    measure = Meter(session, menu, session.scored_text("selection"))
    flat: dict[str, list[Point]] = {}
    for variant in args.variants:
        settings = {
            "variant": variant.name,
            "evaluations": args.evaluations,
            "limit": limit,
            "seed": args.seed,
            "model": session.loaded.fingerprint,
            "menu": menu.key,
            "text": tensor_key(session.selection_ids),
        }
        name = f"flat-{variant.name}-{args.tokens}-{args.budget or 'front'}-s{args.seed}.json"
        run = partial(
            flat_search, variant, menu, measure, args.evaluations, limit=limit, seed=args.seed
        )
        print(f"{variant.name}: {args.evaluations} evaluations ...", flush=True)
        flat[variant.name] = kept_points(args.out and args.out / name, settings, run, args.ignoring)
    if not args.flat_only:
        print(f"{OWN}: {args.trials} trials ...", flush=True)
        own = own_search(args, args.budget, args.trials)
        flat = {OWN: own.points, **flat}
        extra = own.priced_tokens / own.study.dense_selection.tokens
        print(f"  and besides, measurements as costly as at most {extra:.0f} evaluations")
    print_results(flat, menu.inventory.dense_bytes, limit, args.trials)


def print_results(
    points: Mapping[str, Sequence[Point]], dense_bytes: int, limit: int | None, trials: int
) -> None:
    """Print hypervolumes, or with a limit the lowest increases within it."""
    if limit is None:
        print(
            "\nHypervolume: log2 of the ratio times increase, from the dense size and an increase "
            "of 1 nat"
        )
        curves = {name: hypervolumes(found, dense_bytes) for name, found in points.items()}
    else:
        print(f"\nLowest increase of log-perplexity, nats per token, within {limit} bytes")
        curves = {name: lowest_increases(found, limit) for name, found in points.items()}
    for name, curve in curves.items():
        if not curve:
            print(f"{name}: never found a plan within the limit")
    found = {name: curve for name, curve in curves.items() if curve}
    if found:
        print_curves(found, trials, rising=limit is None)


if __name__ == "__main__":
    main()
