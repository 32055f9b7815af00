"""Print trials per minute with one worker, and with several local ones or several on Ray.

    python experiments/parallel_trials.py
    python experiments/parallel_trials.py --workers 4 --model DIR --data FILE --trials 64

All engines measure the same plans: uniform ones, over and over, scored and timed as a search does
it, each layer built before the clock starts. Every worker has one torch thread. Start-up is not
counted: the clock runs from the first trial of every worker to the last before they run out of
work. The engines take turns for several rounds, so that a machine whose speed drifts does not
decide, and the ratio is that of the medians. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import statistics as stats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from autocompress.api.session import Session, TextSettings
from autocompress.api.study_choice import SearchSettings
from autocompress.api.worker import WorkerSettings
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.search.engines.base import Engine, Job, Outcome
from autocompress.search.engines.choosing import load_ray_tune
from autocompress.search.engines.local import LocalProcesses

WANTED = 1.7
PLANS = [(bits, group) for bits in (3, 4, 8) for group in (32, 64)]


class Repeated:
    """Asks for the same plans over and over, and remembers when each was done."""

    def __init__(self, plans: list[Plan], trials: int) -> None:
        self.plans, self.trials = plans, trials
        self.asked, self.done = 0, list[float]()

    @property
    def finished(self) -> bool:
        """Whether all have been asked for."""
        return self.asked == self.trials

    def ask(self) -> Job:
        """Ask for the next."""
        job = Job(self.asked, self.plans[self.asked % len(self.plans)])
        self.asked += 1
        return job

    def tell(self, outcome: Outcome) -> None:
        """Look at the clock."""
        if outcome.error:
            raise SystemExit(f"a trial failed: {outcome.error}")
        self.done.append(time.perf_counter())

    def per_minute(self, workers: int) -> float:
        """Trials per minute while every worker was at work."""
        counted = self.done[workers - 1 : len(self.done) - workers + 1]
        return 60 * (len(counted) - 1) / (counted[-1] - counted[0])


def uniform_plans(session: Session) -> list[Plan]:
    """Plans with all of their layers in the cache."""
    names = [spec.name for spec in session.workbench.inventory.layers]
    plans = [Plan.of({name: Quantize(*each) for name in names}) for each in PLANS]
    for plan in plans:
        for name, method in plan.items():
            session.build(name, method)
    return plans


def engines(worker: WorkerSettings, workers: int) -> dict[str, tuple[int, Callable[[], Engine]]]:
    """Makers of the engines to compare, each with its number of workers."""
    one, several = [worker.open], [worker.open] * workers
    return {
        "1 local": (1, lambda: LocalProcesses(one)),
        f"{workers} local": (workers, lambda: LocalProcesses(several)),
        f"{workers} on Ray": (workers, lambda: load_ray_tune().RayTune(worker.open, workers)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="A worker can gain only what the machine has cores, or GPUs, for.",
    )
    parser.add_argument("--workers", type=int, default=2, help="of the engines to compare with one")
    parser.add_argument("--trials", type=int, default=18, help="of each engine in each round")
    parser.add_argument("--rounds", type=int, default=2, help="of all engines in turn")
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument("--data", help="text; the bundled one when left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs-dir", type=Path, help="whose cache to use; else temporary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        runs_dir, texts = args.runs_dir or Path(scratch), TextSettings(data=args.data)
        settings = SearchSettings(args.model, device=args.device, texts=texts)
        print("Calibrating and building layers ...", flush=True)
        session = settings.open(runs_dir)
        plans = uniform_plans(session)
        worker = WorkerSettings(
            settings, runs_dir, fingerprint=session.loaded.fingerprint, threads=1
        )
        compared = engines(worker, args.workers)
        rates: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(args.rounds):
            for name, (count, make) in compared.items():
                search = Repeated(plans, args.trials)
                make().drive(search)
                rates[name].append(search.per_minute(count))
                print(f"  {name}: {rates[name][-1]:.1f} trials per minute", flush=True)
    print(f"\n{'workers':<12}{'trials/min':>12}{'against 1':>12}")
    base = stats.median(rates["1 local"])
    for name, found in rates.items():
        print(f"{name:<12}{stats.median(found):>12.1f}{stats.median(found) / base:>11.2f}x")
    print(f"\nStart-up is not counted. Wanted with 2 workers on 2 cores: at least {WANTED}x.")


if __name__ == "__main__":
    main()
