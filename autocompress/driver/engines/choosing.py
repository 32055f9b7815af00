"""Which engine a search runs on, from what a person says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from autocompress.driver.engines.base import Engine, Measure, OpenWorker
from autocompress.driver.engines.cluster_address import check_answers
from autocompress.driver.engines.here import Here
from autocompress.driver.engines.local import LocalProcesses
from autocompress.errors import ConfigurationError

ENGINES = ("local", "ray")
# Ray reads some of these while it is imported. What the environment says already wins.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to its makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # it prints what becomes of its workers on stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it announces that this will be the default
    "RAY_AIR_NEW_OUTPUT": "0",  # the output that knows no verbosity of 0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # our adapter says how many; Tune would start one by one
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the study's storage is what a search resumes from
    "TUNE_WARN_THRESHOLD_S": "3600",  # a search may think long about what to measure next
}
# Without clusters, Ray listens on the loopback interface alone.
RAY_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class EngineSettings:
    """Where the trials of a search run.

    Attributes:
        kind: ``local`` or ``ray``.
        workers: trials at a time; with one, ``local`` is this process.
        address: of a Ray cluster that this machine is a node of, ``host:port`` or ``auto``.
        gpus_per_trial: that Ray sets aside for each; a fraction shares one.

    Raises:
        ConfigurationError: what cannot be.
    """

    kind: str = "local"
    workers: int = 1
    address: str | None = None
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ENGINES:
            raise ConfigurationError("--engine", got=repr(self.kind), wanted=" or ".join(ENGINES))
        if self.workers < 1:
            raise ConfigurationError("--workers", got=self.workers, wanted="at least 1")
        if self.gpus_per_trial < 0:
            raise ConfigurationError(
                "--gpus-per-trial", got=self.gpus_per_trial, wanted="0 or more"
            )
        if self.kind != "ray" and (self.address is not None or self.gpus_per_trial):
            named = "--gpus-per-trial" if self.address is None else "--address"
            raise ConfigurationError(f"{named} is for --engine ray", got=f"--engine {self.kind}")

    @property
    def here(self) -> bool:
        """Whether the trials run in this process."""
        return self.kind == "local" and self.workers == 1


def check_engine(settings: EngineSettings) -> None:
    """Make sure that an engine can be had, before the work that its trials wait for.

    Raises:
        ConfigurationError: Ray is not installed, no cluster answers at the address, or a Ray of our
            own would not find the GPUs of a trial.
    """
    if settings.kind != "ray":
        return
    load_ray_tune(settings.address)
    if settings.address is not None:
        check_answers(settings.address)
    elif settings.gpus_per_trial > (gpus := torch.accelerator.device_count()):
        raise ConfigurationError(
            "--gpus-per-trial is more than there are",
            got=f"{settings.gpus_per_trial:g}",
            wanted=f"at most {gpus}, as many as torch finds on this machine",
            hint="Leave it out to search on the CPU, or name a cluster with --address.",
        )


def make_engine(
    settings: EngineSettings,
    measure: Measure,
    open_workers: Sequence[OpenWorker],
    *,
    cpus_per_trial: int = 1,
) -> Engine:
    """Make the engine that somebody chose.

    Args:
        settings: what they chose.
        measure: does a job in this process.
        open_workers: makes what does the jobs, for each worker; on Ray all are as the first.
        cpus_per_trial: cores that Ray sets aside for each trial.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    if settings.here:
        return Here(measure)
    if settings.kind == "local":
        return LocalProcesses(open_workers)
    engine: Engine = load_ray_tune(settings.address).RayTune(
        open_workers[0],
        settings.workers,
        address=settings.address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=settings.gpus_per_trial,
    )
    return engine


def load_ray_tune(address: str | None = None) -> ModuleType:
    """Import Ray, quiet, and alone on this machine unless there is an address.

    Raises:
        ConfigurationError: it is not installed.
    """
    alone = RAY_ALONE if address is None else {}
    for name, value in (RAY_ENVIRONMENT | alone).items():
        os.environ.setdefault(name, value)
    try:
        from autocompress.driver.engines import ray_tune
    except ImportError as error:
        raise ConfigurationError(
            f"--engine ray needs Ray, which cannot be imported: {error}",
            hint='Install it with: pip install "ray[tune]>=2.60,<3"; or leave --engine out.',
        ) from error
    return ray_tune
