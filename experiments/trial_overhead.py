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
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from autocompress.driver.driver import Effort, Search
from autocompress.driver.engines.base import AskTell
from autocompress.driver.opening import open_search
from autocompress.driver.stages import STAGES, Run, TrialStage
from autocompress.driver.study_choice import choose_study
from autocompress.driver.study_session import open_for_target
from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.requests.verbs import SearchRequest
from autocompress.session.session import Session
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.tracking.mlflow_mirror import MlflowMirror

TARGET = 0.05
NOTES = """
Medians, in shares of the bare evaluation. layers: built, or read from the cache; slower: the
evaluation in the trial against the bare one; around: sampler, allocation, storage."""


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
    """Remembers the seconds that building layers took."""

    def __init__(self, session: Session) -> None:
        self._session, self.building = session, 0.0
        super().__init__(session.workbench, self._timed_build)

    def _timed_build(self, name: str, method: Method) -> CompressedMatrix:
        start = time.perf_counter()
        layer = self._session.builder.build(name, method)
        self.building += time.perf_counter() - start
        return layer


class Held:
    """Observes a search for MLflow, and holds each trial back until the next one runs."""

    def __init__(self, mirror: MlflowMirror | None) -> None:
        self.mirror = mirror
        self.trial: tuple[str, TrialRecord] | None = None

    def started(self, study: StudyRecord) -> None:
        """Let MLflow make its database: a cost of the search, not of a trial."""
        if self.mirror:
            self.mirror.started(study)

    def trial_finished(self, study_name: str, trial: TrialRecord) -> None:
        """Hold it back."""
        self.trial = study_name, trial

    def finished(self, study: StudyRecord) -> None:
        """Leave it to the end."""

    def release(self) -> None:
        """Send what is held back."""
        if self.mirror and self.trial:
            self.mirror.trial_finished(*self.trial)

    def wait(self) -> None:
        """Wait until MLflow's thread, which does one job after another, has nothing to do."""
        if self.mirror:
            idle = threading.Event()
            self.mirror._submit(idle.set)
            idle.wait()


class PairingEngine:
    """Runs each trial, and right after it its evaluation once more, with its layers built."""

    idle = False  # it does no tasks

    def __init__(self, evaluator: TimedEvaluator, text: ScoredText, held: Held) -> None:
        self.evaluator, self.text, self.held = evaluator, text, held
        self.pairs: list[Pair] = []

    def drive(self, search: AskTell) -> None:
        """See ``Engine``."""
        while not search.finished:
            self.evaluator.building, start = 0.0, time.perf_counter()
            if (job := search.ask()) is None:
                return
            outcome = self.evaluator.run(job, self.text)
            building = self.evaluator.building
            search.tell(outcome)
            whole = time.perf_counter() - start
            self.held.wait()
            bare = self.evaluator.run(job, self.text).seconds
            if self.held.trial is not None and outcome.stopped_at is None:
                phase = self.held.trial[1].phase
                self.pairs.append(Pair(phase, whole, building, outcome.seconds, bare))
            self.held.release()


def print_table(pairs: list[Pair]) -> None:
    names = "overhead", "layers", "slower", "around"
    print(f"{'trials':<14}{'number':>7}{'bare':>8}", *(f"{name:>9}" for name in names))
    for phase in ("baseline", "allocation", "knobs", "swaps", "all"):
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
        request = SearchRequest(
            budget=args.budget, study=f"overhead-{time.time():.0f}", runs_dir=runs_dir
        )
        print("Fitting the options of every matrix ...", flush=True)
        run = Run(open_search(request, open_for_target, choose_study))
        for stage in takewhile(lambda stage: not isinstance(stage, TrialStage), STAGES):
            stage.run(run)
        session = run.session
        evaluator = TimedEvaluator(session)
        held = Held(None if args.no_track else MlflowMirror(f"sqlite:///{scratch}/mlflow.db"))
        selection = session.scored_text("selection")
        engine = PairingEngine(evaluator, selection, held)
        print(f"Searching ({args.trials} trials) ...\n", flush=True)
        effort = Effort(args.trials)
        search = Search(
            *(run.study, run.opened.folder, run.proposer),
            *(effort, len(selection.windows), [held]),
        )
        held.started(search.record)
        engine.drive(search)
        print_table(engine.pairs)
        if held.mirror:
            held.mirror.close()


if __name__ == "__main__":
    main()
