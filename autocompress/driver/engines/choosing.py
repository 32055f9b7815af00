"""Which engine a search runs on, from what a person says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType

import torch

from autocompress.driver.engines.base import Engine, Measure, OpenWorker
from autocompress.driver.engines.cluster_address import check_answers
from autocompress.driver.engines.here import Here
from autocompress.driver.engines.local import LocalProcesses
from autocompress.errors import ConfigurationError
from autocompress.requests.groups import EngineRequest

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


def check_engine(request: EngineRequest) -> None:
    """Make sure that an engine can be had, before the work that its trials wait for.

    Raises:
        ConfigurationError: Ray is not installed, no cluster answers at the address, or a Ray of our
            own would not find the GPUs of a trial.
    """
    if request.engine != "ray":
        return
    load_ray_tune(request.address)
    if request.address is not None:
        check_answers(request.address)
    elif request.gpus_per_trial > (gpus := torch.accelerator.device_count()):
        raise ConfigurationError(
            "--gpus-per-trial is more than there are",
            got=f"{request.gpus_per_trial:g}",
            wanted=f"at most {gpus}, as many as torch finds on this machine",
            hint="Leave it out to search on the CPU, or name a cluster with --address.",
        )


def make_engine(
    request: EngineRequest,
    measure: Measure,
    open_workers: Sequence[OpenWorker],
    *,
    cpus_per_trial: int = 1,
) -> Engine:
    """Make the engine that somebody chose.

    Args:
        request: what they chose.
        measure: does a job in this process.
        open_workers: makes what does the jobs, for each worker; on Ray all are as the first.
        cpus_per_trial: cores that Ray sets aside for each trial.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    if request.here:
        return Here(measure)
    if request.engine == "local":
        return LocalProcesses(open_workers)
    engine: Engine = load_ray_tune(request.address).RayTune(
        open_workers[0],
        request.workers,
        address=request.address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=request.gpus_per_trial,
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
