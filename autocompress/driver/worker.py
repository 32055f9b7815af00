"""What does the work of a search in another process: the model, its texts, and the shared cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from autocompress.calibration.builder import LayerBuilder
from autocompress.driver.engines.base import Answer, Errand, Measure, Work
from autocompress.driver.study_session import open_for_target
from autocompress.errors import ModelError, StorageError
from autocompress.evaluation.evaluator import Evaluator, PricingTexts, ScoredText
from autocompress.evaluation.latency import Latency
from autocompress.healing.teacher import DenseTeacher
from autocompress.progress import Notes
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session
from autocompress.store import CACHE
from autocompress.studies.study import StudyRecord


class Desk:
    """What somebody who does the work of a search has at hand, each thing made when it is needed.

    Args:
        session: the model, its texts and the cache.
        dense_latency: of the dense model when the study began; measured when left out.
    """

    def __init__(self, session: Session, dense_latency: Latency | None = None) -> None:
        self.session, self._dense_latency = session, dense_latency

    def __call__(self, work: Work) -> Answer:
        """Do a job of a search, or an errand; see ``Measure``."""
        if isinstance(work, Errand):
            return work.done_on(self)
        return self.evaluator.run(work, self.selection)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Measures plans."""
        session = self.session
        return Evaluator(
            session.workbench, session.builder.build, self._dense_latency, session.begin
        )

    @cached_property
    def selection(self) -> ScoredText:
        """The text that trials are scored on."""
        return self.session.scored_text("selection")

    @cached_property
    def report(self) -> ScoredText:
        """The text that the final figures are measured on."""
        return self.session.scored_text("report")

    @cached_property
    def teacher(self) -> DenseTeacher:
        """The dense model's predictions on the text to heal on."""
        return DenseTeacher(self.session.workbench.model, given=max(1, len(self.session.begin)))

    @property
    def builder(self) -> LayerBuilder:
        """Builds layers."""
        return self.session.builder

    @property
    def pricing_texts(self) -> PricingTexts:
        """The texts that options are priced on."""
        return self.session.pricing_texts

    def take_notes(self) -> tuple[str, ...]:
        """What was said in this worker since the last time; nothing where a person hears it."""
        progress = self.session.progress
        if not isinstance(progress, Notes):
            return ()
        said, progress.said = tuple(progress.said), []
        return said


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to do as the search itself would. Picklable, and small.

    Attributes:
        request: that of the search; see ``spread`` for the device of several workers. Its
            ``runs_dir`` has the cache, which the driver has filled; on a cluster every node must
            see it under this path.
        dense_latency: of the dense model when the study began: what measured times refer to.
        fingerprint: of the model that the search loaded; not compared when left out.
        threads: of torch in the worker; as torch would have it when left out.
    """

    request: SessionRequest
    dense_latency: Latency | None = None
    fingerprint: str | None = None
    threads: int | None = None

    def shared_among(self, workers: int) -> WorkerSettings:
        """The settings of each of several workers on one machine: a share of torch's threads.

        One worker alone gets as many as this process has, so that it measures the same.
        """
        return replace(self, threads=max(1, torch.get_num_threads() // workers))

    def spread(self, workers: int) -> Sequence[WorkerSettings]:
        """The settings of each of several workers on one machine, one after the other.

        With ``device="cuda"`` and several GPUs, worker ``i`` takes ``cuda:i``, counted round.
        """
        shared = self.shared_among(workers)
        gpus = torch.cuda.device_count() if self.request.device == "cuda" else 0
        if gpus < 2:
            return [shared] * workers
        devices = [f"cuda:{index % gpus}" for index in range(workers)]
        return [replace(shared, request=replace(self.request, device=each)) for each in devices]

    def open(self) -> Measure:
        """Load the model and everything else, in this process.

        Raises:
            AutocompressError: something is missing, or is not what the search itself has.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _check_cache(Path(self.request.runs_dir))
        session = open_for_target(replace(self.request, progress=Notes()))
        _check_model(session, self.fingerprint)
        return Desk(session, self.dense_latency)


def dense_latency_of(record: StudyRecord) -> Latency | None:
    """What the dense model took when a study began, where that was measured."""
    measured = record.dense_selection
    if measured.latency_ms is None or measured.latency_spread_ms is None:
        return None
    return Latency(measured.latency_ms, measured.latency_spread_ms)


def _check_cache(runs_dir: Path) -> None:
    """See that statistics are there: to collect them again in each worker would take long."""
    if not any((runs_dir / CACHE).glob("*/statistics/*/*.safetensors")):
        raise StorageError(
            f"the worker finds no statistics in {(runs_dir / CACHE).absolute()}",
            wanted="the cache that the search filled",
            hint="On several machines, --runs-dir must be a folder that all of them share.",
        )


def _check_model(session: Session, fingerprint: str | None) -> None:
    found = session.loaded.fingerprint
    if fingerprint not in (None, found):
        raise ModelError(
            f"the worker loads other weights for {session.loaded.source} than the search",
            got=found,
            wanted=fingerprint,
            hint="Every machine must have the same copy of the model.",
        )
