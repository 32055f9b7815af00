"""Kill a search over and over, by SIGKILL at random moments, and see what is left.

    python experiments/kill_search.py
    python experiments/kill_search.py --kills 4 --trials 20 --engine local

An undisturbed search is run first. Then the same search is started under each engine in turn, and
one process of it is killed: a worker, or the driver. After a worker's end the search must go on by
itself; after the driver's, no process of it may be left, and the same command goes on. At last it
is let finish. Printed for each kill: how many trials had finished before it, how many of these are
lost or changed after it, how many there are in the end, and which processes are left. The final
fronts are compared by their hypervolumes. The moments are drawn from a fixed seed, but what the
machine does at each of them is not: two runs differ.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from autocompress.errors import StudyError
from autocompress.judging.hypervolume import hypervolume
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.studies.study_store import read_study

STUDY, UNDISTURBED = "disturbed", "undisturbed"
PATIENCE = 1200.0  # seconds until something that has to come about counts as failed
LEAVING = (
    150.0  # seconds that the processes of a killed driver have to end; Ray's agents take a minute
)
# What the command line of a worker's process holds, by engine.
WORKER = {"local": "spawn_main", "ray": "_Actor"}
KINDS = [(engine, victim) for victim in ("worker", "driver") for engine in WORKER]


@dataclass(frozen=True)
class Searches:
    """Starts the searches to compare, and reads what they have found."""

    runs_dir: Path
    options: list[str]
    trials: int

    @contextmanager
    def running(self, study: str, engine: str) -> Iterator[subprocess.Popen[str]]:
        """Run a search in a session of its own; whatever is left of it is killed at the end."""
        command = [sys.executable, "-m", "autocompress", "search", "--no-track", "--no-refit"]
        command += ["--study", study, "--runs-dir", str(self.runs_dir), "--workers", "2"]
        command += ["--engine", engine, "--trials", str(self.trials), *self.options]
        with (self.runs_dir / f"{study}.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, text=True, start_new_session=True
            )
            children: list[psutil.Process] = []
            try:
                yield process
            finally:
                with suppress(psutil.NoSuchProcess):
                    children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                for child in children:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()

    def finish(self, study: str) -> StudyRecord:
        """Run a search to its end."""
        with self.running(study, "local") as process:
            if process.wait() not in (0, 3):
                raise SystemExit((self.runs_dir / f"{study}.log").read_text()[-2000:])
        return read_study(study, self.runs_dir)

    def finished(self) -> dict[int, TrialRecord]:
        """Trials that have been measured or given up, by number."""
        try:
            record = read_study(STUDY, self.runs_dir)
        except StudyError:  # not made yet
            return {}
        return {trial.number: trial for trial in record.trials if trial.state != "failed"}


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def workers_of(driver: psutil.Process, engine: str) -> list[psutil.Process]:
    found = []
    for process in driver.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if WORKER[engine] in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_once(searches: Searches, engine: str, victim: str, draw: random.Random) -> bool:
    """Go on with the search, kill, and print what came of it; whether all was well."""
    at_start = len(searches.finished())
    with searches.running(STUDY, engine) as process:
        driver = psutil.Process(process.pid)
        # Half of the kills come while workers start, half once a trial has finished.
        some = draw.random() < 0.5

        def ripe() -> bool:
            ended = process.poll() is not None
            enough = not some or len(searches.finished()) > at_start
            return ended or bool(enough and workers_of(driver, engine))

        wait_until(ripe)
        if process.poll() is not None:
            raise SystemExit((searches.runs_dir / f"{STUDY}.log").read_text()[-2000:])
        time.sleep(draw.uniform(0, 5))
        below = driver.children(recursive=True)
        before = searches.finished()
        targets = [driver] if victim == "driver" else workers_of(driver, engine)
        draw.choice(targets).send_signal(signal.SIGKILL)
        left = 0
        if victim == "driver":
            process.wait()
            wait_until(lambda: not any(map(alive, below)), LEAVING)
            left = sum(map(alive, below))
            goes_on = "by resuming"
        else:
            more = wait_until(lambda: len(searches.finished()) > len(before))
            goes_on = "yes" if more else "NO"
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LEAVING)
    after = searches.finished()
    lost = sum(after.get(number) != trial for number, trial in before.items())
    row = f"{engine:<7}{victim:<8}{len(before):>9}{lost:>6}{len(after):>7}{left:>6}  {goes_on}"
    print(row, flush=True)
    return lost == 0 and left == 0 and goes_on != "NO"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Other options, such as --data and --space, are handed to autocompress search.",
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40, help="more than can finish between kills")
    parser.add_argument("--budget", default="10x")
    parser.add_argument("--engine", choices=["local", "ray"], help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--runs-dir", type=Path, help="must not hold these studies yet")
    args, others = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Where a shell started this in the background, the searches would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(args.seed)
    kinds = [kind for kind in KINDS if args.engine in (None, kind[0])]
    with tempfile.TemporaryDirectory() as scratch:
        runs_dir = (args.runs_dir or Path(scratch)).absolute()
        runs_dir.mkdir(parents=True, exist_ok=True)
        searches = Searches(runs_dir, ["--budget", args.budget, *others], args.trials)
        print("The undisturbed search ...", flush=True)
        undisturbed = searches.finish(UNDISTURBED)
        print(
            f"{'engine':<7}{'killed':<8}{'finished':>9}{'lost':>6}{'after':>7}{'left':>6}  goes on"
        )
        well = [kill_once(searches, *kinds[kill % len(kinds)], draw) for kill in range(args.kills)]
        disturbed = searches.finish(STUDY)
        ratio = hypervolume(disturbed) / hypervolume(undisturbed)
        counts = len(disturbed.complete), len(undisturbed.complete)
    print(f"\nKills after which all was well: {sum(well)} of {len(well)}.")
    print(f"Measured trials in the end: {counts[0]}, undisturbed {counts[1]}.")
    print(f"Hypervolume of the final front against the undisturbed one: {ratio:.4f}")


if __name__ == "__main__":
    main()
