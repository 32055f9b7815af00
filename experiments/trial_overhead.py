"""Print what a trial of a search costs beyond the bare evaluation of its plan.

    python experiments/trial_overhead.py
    python experiments/trial_overhead.py --trials 32 --no-track

A real search runs on the bundled model with its default settings. A trial is timed from the end of
the one before to its own end: sampler, allocation, layers, evaluation, Optuna's storage, and MLflow
in its thread. Right after it the same plan is measured again with its layers built and nothing else
going on: the bare evaluation. So each ratio is of two neighbours in time, and a machine whose speed
drifts does not decide. MLflow's work on a trial is held back until the next trial runs: as in a
search it competes with a trial, and never with a bare evaluation.
"""

from __future__ import annotations

import argparse
import statistics as stats
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autocompress.api.searching import Destination, SearchSettings, run_search
from autocompress.api.session import Session, open_session, read_space
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.progress import Advance, Silent
from autocompress.records import Measurement
from autocompress.search.driver import Search
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.search.study_store import load_optuna_study
from autocompress.tracking.mlflow_mirror import MlflowMirror

TARGET = 0.15
NOTES = """
Medians, in shares of the bare evaluation. layers: built, or read from the cache; slower: the
evaluation in the trial against the bare one; around: sampler, allocation, storage."""


class TrialsDone(Exception):
    """The last trial has ended; the front need not be measured."""


@dataclass(frozen=True)
class Pair:
    """Seconds of a trial, of its parts, and of the bare evaluation of its plan just after it."""

    phase: str
    whole: float
    building: float
    evaluating: float
    bare: float

    @property
    def shares(self) -> list[float]:
        """Of the bare evaluation: all overhead, layers, slower evaluation, around it."""
        slower = self.evaluating - self.building - self.bare
        parts = self.whole - self.bare, self.building, slower, self.whole - self.evaluating
        return [part / self.bare for part in parts]


class TimedEvaluator(Evaluator):
    """Remembers what it measured last, the seconds it took, and those of building layers."""

    def __init__(self, session: Session) -> None:
        self._session, self.building, self.seconds = session, 0.0, 0.0
        super().__init__(session.workbench, self._timed_build)

    def _timed_build(self, name: str, method: Method) -> CompressedMatrix:
        start = time.perf_counter()
        layer = self._session.build(name, method)
        self.building += time.perf_counter() - start
        return layer

    def measure(self, plan: Plan, text: ScoredText, *, latency: bool = True) -> Measurement:
        """Measure as ever, and look at the clock."""
        self.building, self.last, start = 0.0, (plan, text), time.perf_counter()
        measurement = super().measure(plan, text, latency=latency)
        self.seconds = time.perf_counter() - start
        return measurement


class Stopwatch(Silent):
    """Observes a search and stands where it draws progress, to step in when a trial ends."""

    def __init__(self, evaluator: TimedEvaluator, mirror: MlflowMirror | None) -> None:
        self.evaluator, self.mirror = evaluator, mirror
        self.pairs: list[Pair] = []
        self._ended: tuple[str, TrialRecord] | None = None
        self._start = 0.0

    def started(self, study: StudyRecord) -> None:
        """Let MLflow make its database: a cost of the search, not of a trial."""
        if self.mirror:
            self.mirror.started(study)

    def trial_finished(self, study_name: str, trial: TrialRecord) -> None:
        """Hold it back from MLflow until the next one runs."""
        self._ended = study_name, trial

    def finished(self, study: StudyRecord) -> None:
        """Never comes to pass: ``task`` stops the search before."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """Time the trials, and stop before anything else that has a bar."""
        if "trials" not in description:
            raise TrialsDone
        yield self._trial_ended

    def _trial_ended(self, _steps: int) -> None:
        whole = time.perf_counter() - self._start
        if self.mirror:  # its thread does one job after another; wait for those before this one
            idle = threading.Event()
            self.mirror._submit(idle.set)
            idle.wait()
        if self._ended and self._ended[1].selection:
            phase, timed = self._ended[1].phase, self.evaluator
            parts = timed.building, timed.seconds
            timed.measure(*timed.last)
            self.pairs.append(Pair(phase, whole, *parts, timed.seconds))
        self._start = time.perf_counter()
        if self._ended and self.mirror:
            self.mirror.trial_finished(*self._ended)


def print_table(pairs: list[Pair]) -> None:
    names = "overhead", "layers", "slower", "around"
    print(f"{'trials':<14}{'number':>7}{'bare':>8}", *(f"{name:>9}" for name in names))
    for phase in ("hand-written", "allocation", "knobs", "all"):
        chosen = [pair for pair in pairs if phase in (pair.phase, "all")]
        if chosen:
            shares = zip(*(pair.shares for pair in chosen), strict=True)
            columns = [f"{stats.median(share):>9.1%}" for share in shares]
            bare = stats.median(pair.bare for pair in chosen)
            print(f"{phase:<14}{len(chosen):>7}{bare:>6.2f} s", *columns)
    total = sum(pair.whole for pair in pairs) / sum(pair.bare for pair in pairs) - 1
    print(NOTES, f"Of all seconds together, the overhead is {total:.1%}.", sep="\n")
    median = stats.median(pair.shares[0] for pair in pairs)
    print(f"\nA trial costs {median:.1%} beyond its bare evaluation (wanted: under {TARGET:.0%}).")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="10x")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument(
        "--runs-dir", type=Path, help="runs whose cache to use; temporary when left out"
    )
    parser.add_argument("--no-track", action="store_true", help="without MLflow")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs_dir = args.runs_dir or Path(scratch)
        settings = SearchSettings(budget=args.budget)
        print("Fitting the options of every matrix ...", flush=True)
        session, space = open_session(None, settings.texts, runs_dir), read_space(settings.space)
        menu = session.menu(space)
        destination = Destination(f"overhead-{time.time():.0f}", runs_dir)
        name = run_search(settings, destination, trials=1).name  # makes the study
        study = load_optuna_study(name, destination.url(name))
        evaluator = TimedEvaluator(session)
        mirror = None if args.no_track else MlflowMirror(f"sqlite:///{scratch}/mlflow.db")
        watch = Stopwatch(evaluator, mirror)
        texts = session.scored_text("selection"), session.scored_text("report")
        print(f"Searching ({args.trials} trials) ...\n", flush=True)
        folder = runs_dir / name
        search = Search(study, folder, evaluator, menu, (), *texts, [watch], watch)
        with suppress(TrialsDone):
            search.run(args.trials)
        print_table(watch.pairs)
        if mirror:
            mirror.close()


if __name__ == "__main__":
    main()
