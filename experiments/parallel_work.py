"""Print the seconds of fitting, pricing and trials with one worker, several, and several on Ray.

    python experiments/parallel_work.py
    python experiments/parallel_work.py --workers 4 --model DIR --data FILE --trials 64

Every engine does the same: it fits samples of each kind of matrix and predicts the others, fits
what the allocation at the budget takes, prices the options inside that plan, and measures uniform
plans over and over, scored and timed as a search does it. Each begins with nothing but statistics
and the dense model's predictions. Every worker has one torch thread, and so has this process.
Start-up is not counted. The engines take turns for several rounds, so that a machine whose speed
drifts does not decide; printed are the medians and their ratios to one worker. Nothing else should
run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import statistics as stats
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.driver.engines.base import Engine
from autocompress.driver.engines.choosing import load_ray_tune
from autocompress.driver.engines.local import LocalProcesses
from autocompress.driver.prices import price_options
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.worker import WorkerSettings
from autocompress.evaluation.jobs import Job, Outcome
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.requests.verbs import SearchRequest
from autocompress.session.session import Session, open_session
from autocompress.space.space_file import load_space
from autocompress.store import CACHE
from autocompress.units import Budget

WANTED = 1.7
PLANS = [(bits, group) for bits in (3, 4, 8) for group in (32, 64)]
KEPT = ("statistics", "teachers")  # what every engine begins with
Make = Callable[[WorkerSettings], Engine]


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

    def seconds(self, workers: int) -> float:
        """Of a trial while every worker was at work."""
        counted = self.done[workers - 1 : len(self.done) - workers + 1]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


@dataclass(frozen=True)
class Awake:
    """A task that waits until every worker has one: then all have loaded the model."""

    folder: Path
    workers: int

    def done_on(self, desk: Any) -> None:
        """Say that one is there, and wait for the others."""
        desk.pricing_texts  # noqa: B018  # the dense model's predictions are read
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False):
            while len(list(self.folder.iterdir())) < self.workers:
                time.sleep(0.05)


def uniform_plans(session: Session) -> list[Plan]:
    """Plans with all of their layers in the cache."""
    names = [spec.name for spec in session.workbench.inventory.layers]
    plans = [Plan.of({name: Quantize(*each) for name in names}) for each in PLANS]
    for plan in plans:
        for name, method in plan.items():
            session.builder.build(name, method)
    return plans


def measured(
    request: SearchRequest, make: Make, workers: int, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds of each kind of work with one engine, from a cache with statistics alone."""
    session = open_session(request)
    fingerprint = session.loaded.fingerprint
    worker = WorkerSettings(request, fingerprint=fingerprint, threads=1)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = work()
        found[name] = time.perf_counter() - started
        return value

    with closing(make(worker)) as engine, tempfile.TemporaryDirectory() as there:
        engine.do([Awake(Path(there), workers)] * workers)
        session.crew = engine
        menu = timed("fitting samples", lambda: session.menu(load_space(args.space), samples=1))
        inventory = session.workbench.inventory
        limits = Budget.parse(args.budget).limits(inventory.dense_bytes, 1.0)
        proposer = Proposer(menu, inventory, limits, fit=session.fit_taken)
        plan = timed("fitting plans", lambda: proposer.settled(PREDICTED, *proposer.targets[:3]))
        text = session.pricing_texts.slopes
        timed(
            "pricing",
            lambda: price_options(plan, proposer.menu, session.builder, text, crew=engine),
        )
        search = Repeated(uniform_plans(session), args.trials)
        engine.drive(search)
        found["a trial"] = search.seconds(workers)
    return found


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
    parser.add_argument("--space", default="default", help="search space (%(default)s)")
    parser.add_argument("--budget", default="10x", help="of the plan to price in (%(default)s)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workers = args.workers
    engines: dict[str, tuple[int, Make]] = {
        "1 local": (1, lambda worker: LocalProcesses([worker.open])),
        f"{workers} local": (workers, lambda worker: LocalProcesses([worker.open] * workers)),
        f"{workers} on Ray": (
            workers,
            lambda worker: load_ray_tune().RayTune(worker.open, workers),
        ),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "first"
        request = SearchRequest(
            model=args.model, device=args.device, data=args.data, runs_dir=first
        ).located()
        print("Calibrating ...", flush=True)
        session = open_session(request)
        session.calibrated()
        session.pricing_texts, session.scored_text("selection")  # kept if it is long
        for turn in range(args.rounds):
            for name, (count, make) in engines.items():
                runs_dir = Path(scratch) / f"{turn} {name}"
                for folder in (first / CACHE).iterdir():
                    for kind in KEPT:
                        if (folder / kind).exists():
                            copied = runs_dir / CACHE / folder.name / kind
                            shutil.copytree(folder / kind, copied)
                found[name].append(measured(replace(request, runs_dir=runs_dir), make, count, args))
                shutil.rmtree(runs_dir)
                said = ", ".join(f"{kind} {took:.1f}" for kind, took in found[name][-1].items())
                print(f"  {name}: {said} s", flush=True)
    show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and how many times as fast as one worker they are."""
    medians = {
        name: {kind: stats.median(each[kind] for each in rounds) for kind in rounds[0]}
        for name, rounds in found.items()
    }
    base = medians["1 local"]
    print(f"\n{'seconds':<12}" + "".join(f"{kind:>24}" for kind in base))
    for name, seconds in medians.items():
        cells = (f"{took:.2f} ({base[kind] / took:.2f}x)" for kind, took in seconds.items())
        print(f"{name:<12}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\nStart-up is not counted. Wanted with 2 workers on 2 cores: at least {WANTED}x.")


if __name__ == "__main__":
    main()
