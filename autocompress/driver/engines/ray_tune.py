"""Runs the jobs of a search on Ray Tune, and its errands on actors, here or on a cluster.

Tune asks a ``Searcher`` for configurations and tells it results, which is what a search and an
engine say to each other. A Tune trial is one job; the processes that do them are kept from job to
job, so a model is loaded once in each. ``choosing`` imports this, after it has told Ray through the
environment what it reads there while it is imported.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.callback import Callback
from ray.tune.error import TuneError
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from autocompress.crew import Done, Task
from autocompress.driver.engines.answering import RETRIES, answer, lost, open_measure
from autocompress.driver.engines.base import AskTell, OpenWorker
from autocompress.driver.engines.batch import Batch
from autocompress.driver.engines.cluster_address import check_answers
from autocompress.driver.engines.ray_actors import RayActors
from autocompress.driver.engines.scratch import scratch_folder
from autocompress.errors import AutocompressError, ConfigurationError
from autocompress.evaluation.jobs import Job
from autocompress.quiet import quietened

logger = logging.getLogger(__name__)


class RayTune:
    """Runs as many jobs at a time as it has workers, each an actor of Ray.

    A job whose actor or node is lost is tried again by Tune.

    Args:
        open_worker: makes what does the jobs, in each actor. On a cluster every node must have
            autocompress installed, and see the same folders.
        workers: jobs at a time.
        address: ``host:port`` of a cluster that this machine is a node of, or ``auto`` for the one
            that runs here; ``None`` starts a Ray of our own on the loopback interface, and ends it.
            A Ray that this process is connected to already is used as it is.
        cpus_per_trial: cores that Ray sets aside for each job.
        gpus_per_trial: GPUs for each job; a fraction shares one.
    """

    def __init__(
        self,
        open_worker: OpenWorker,
        workers: int = 1,
        *,
        address: str | None = None,
        cpus_per_trial: int = 1,
        gpus_per_trial: float = 0.0,
    ) -> None:
        self.open_worker, self.workers, self.address = open_worker, workers, address
        self.cpus_per_trial, self.gpus_per_trial = cpus_per_trial, gpus_per_trial
        self._connection, self._scratch = ExitStack(), Path()
        self._actors: RayActors | None = None
        self._driving = self._open = False

    @property
    def idle(self) -> bool:
        """See ``Crew``."""
        return not self._driving

    def do(
        self,
        tasks: Sequence[Task],
        done: Done = lambda _number, _value: None,
        deadline: float = math.inf,
    ) -> list[Any]:
        """See ``Crew``. The actors stay until trials run or all is closed."""
        batch = Batch(tasks, done, deadline)
        if not batch.finished:
            with self._answered():
                if self._actors is None:
                    resources = {"num_cpus": self.cpus_per_trial, "num_gpus": self.gpus_per_trial}
                    self._actors = RayActors(self.open_worker, self.workers, resources)
                self._actors.drive(batch)
        return batch.values()

    def drive(self, search: AskTell) -> None:
        """See ``Engine``."""
        adapter = _Adapter(search, self.workers)
        self._driving = True
        try:
            with self._answered():
                self._end_actors()  # they hold what the trials need
                self._tune(adapter)
        finally:
            self._driving = False
        if adapter.trouble is not None:
            raise adapter.trouble

    def close(self) -> None:
        """See ``Engine``. A Ray of our own ends, too."""
        self._end_actors()
        self._open = False
        self._connection.close()

    def _end_actors(self) -> None:
        actors, self._actors = self._actors, None
        if actors is not None:
            actors.end()

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Connect, where that has not been done, and say it in words where Ray gives up."""
        try:
            if not self._open:
                self._connection.enter_context(quietened("ray", level=logging.CRITICAL))
                self._scratch = self._connection.enter_context(scratch_folder("autocompress-ray-"))
                self._connection.enter_context(self._connected(self._scratch))
                self._open = True
                _check_room({"cpu": self.cpus_per_trial, "gpu": self.gpus_per_trial})
            yield
        except (TuneError, RayError) as error:
            self.close()
            raise AutocompressError(
                f"Ray gave up: {_last_line(error)}",
                hint="What had finished is kept; --resume goes on with it.",
            ) from error
        except BaseException:
            self.close()
            raise

    def _tune(self, adapter: _Adapter) -> None:
        tune.run(
            _Actor,
            config={"open_worker": self.open_worker},
            search_alg=adapter,
            num_samples=-1,
            resources_per_trial={"cpu": self.cpus_per_trial, "gpu": self.gpus_per_trial},
            max_failures=RETRIES,
            reuse_actors=True,
            stop=adapter.stopper,
            callbacks=[_Notices()],
            storage_path=str(self._scratch / "results"),
            name="search",
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            raise_on_failed_trial=False,
            verbose=0,
        )

    @contextmanager
    def _connected(self, scratch: Path) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        on_termination = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # Ray sets its own
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        try:
            if self.address is None:
                ray.init(
                    num_cpus=self.workers * self.cpus_per_trial,
                    include_dashboard=False,
                    _temp_dir=str(scratch),  # short: its sockets have paths of at most 107 bytes
                    **quiet,
                )
            else:
                check_answers(self.address)
                ray.init(address=self.address, **quiet)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            hint = "Start a cluster with `ray start --head`, or leave --address out."
            where = "a Ray of its own" if self.address is None else f"the Ray at {self.address}"
            what = f"the search cannot use {where}: {_last_line(error)}"
            raise ConfigurationError(what, hint=hint) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_termination)
        try:
            yield
        finally:
            ray.shutdown()


class _Actor(tune.Trainable):
    """Does one job per Tune trial; the model stays from one to the next."""

    def setup(self, config: dict[str, Any]) -> None:
        """Open what does the jobs; where that is refused, the first step says why."""
        self.job: Job = config["job"]
        self.refusal: AutocompressError | None = None
        try:
            self.measure = open_measure(config["open_worker"])
        except AutocompressError as error:
            self.refusal = error

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        self.job = new_config["job"]
        return True

    def step(self) -> dict[str, Any]:
        """Do the job."""
        answered = self.refusal or answer(self.measure, self.job)
        return {"answer": answered, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A job that was cut off starts over."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See ``save_checkpoint``."""


class _StopAtTrouble(Stopper):
    """Ends the experiment without waiting for the jobs that run.

    Tune pickles it, so it holds nothing but a flag.
    """

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """Leave it to the trial, which does one step."""
        return False

    def stop_all(self) -> bool:
        """Whether something is wrong."""
        return self.stopped


class _Adapter(Searcher):
    """Speaks ``AskTell`` on one side and Tune's ``Searcher`` on the other.

    What the search raises is kept in ``trouble`` until Tune has ended, which else would wrap it.
    """

    def __init__(self, search: AskTell, workers: int) -> None:
        super().__init__()
        self.search, self.workers = search, workers
        self.running: dict[str, Job] = {}
        self.trouble: Exception | None = None
        self.stopper = _StopAtTrouble()

    def suggest(self, trial_id: str) -> Any:
        """Ask for a job; ``None`` to wait, ``FINISHED`` when nothing more will come."""
        if self.trouble is not None:
            return Searcher.FINISHED
        if len(self.running) >= self.workers:
            return None
        job = self._ask()
        if job is not None:
            self.running[trial_id] = job
            return {"job": job}
        # With nothing running there is nothing to wait for.
        return None if self.running else Searcher.FINISHED

    def on_trial_complete(
        self,
        trial_id: str,
        result: Mapping[str, Any] | None = None,
        error: bool = False,  # noqa: ARG002 - Tune passes it by name
    ) -> None:
        """Tell what became of a job."""
        job = self.running.pop(trial_id, None)
        if job is None or self.trouble is not None:
            return
        answered = (result or {}).get("answer") or lost(job, "with its actor or node")
        if isinstance(answered, AutocompressError):
            self._stop(answered)
        else:
            self._tell(answered)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's storage is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""

    def _ask(self) -> Any:
        try:
            return None if self.search.finished else self.search.ask()
        except Exception as error:  # noqa: BLE001 - raised again by ``drive``
            self._stop(error)
            return None

    def _tell(self, outcome: Any) -> None:
        try:
            self.search.tell(outcome)
        except Exception as error:  # noqa: BLE001 - raised again by ``drive``
            self._stop(error)

    def _stop(self, trouble: Exception) -> None:
        self.trouble, self.stopper.stopped = trouble, True


class _Notices(Callback):
    """Says when a job is tried again."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Say it as the engine with processes does."""
        logger.warning("a worker of Ray was lost; its job is tried again")


def _check_room(resources: Mapping[str, float]) -> None:
    """See that some node could ever run a job: else Ray would wait for one to appear.

    Raises:
        ConfigurationError: none could.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    found = [{kind: node.get(kind.upper(), 0) for kind in resources} for node in nodes]
    if any(all(node[kind] >= least for kind, least in resources.items()) for node in found):
        return
    raise ConfigurationError(
        "no node of Ray has room for a trial",
        got="; ".join(sorted({_in_words(node) for node in found})),
        wanted=_in_words(resources),
        hint="Lower --gpus-per-trial, or raise --workers, which share the cores.",
    )


def _in_words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind.upper()}s" for kind, amount in resources.items())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
