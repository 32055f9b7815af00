"""What is there already, looked up for a dry run without writing anything."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.kept_metrics import KeptMetrics
from autocompress.calibration.latency_table import LatencyTable
from autocompress.calibration.screening import sampled_fits
from autocompress.driver.estimate.work import Fits
from autocompress.driver.study_choice import Destination, choose_study
from autocompress.driver.study_session import open_for_target
from autocompress.methods.keep import Keep
from autocompress.records import LayerSpec
from autocompress.requests.efforts import EffortLevel
from autocompress.requests.verbs import SearchRequest
from autocompress.session.session import Session
from autocompress.space.space import Space
from autocompress.store import CACHE, Cache
from autocompress.studies.run_folder import find_study
from autocompress.studies.storage import file_of, storage_url
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import read_study, to_record

# Fits of a matrix for each size that plans are made for, about: some six for ten sizes, and what is
# read and factorised for a single one takes as long as the fit.
TAKEN = 1.2
MOST_BYTES_TO_LOOK_UP = 2 * 10**9  # of a model; hashing the weights of larger ones takes long


@dataclass(frozen=True)
class Cached:
    """What is in the cache already.

    Attributes:
        folder: the cache.
        statistics: matrices whose statistics are there.
        fits: options that are fitted; ``None`` when that was not looked up, for large models.
    """

    folder: Path
    statistics: int
    fits: int | None


class _CacheToRead(Cache):
    """A cache that nothing is written to, and whose folder need not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep_tensors(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep nothing."""

    def keep_record(self, kind: str, key: str, value: object) -> None:
        """Keep nothing."""

    @staticmethod
    def _mark_used(path: Path) -> None:
        """To look is no use."""

    @staticmethod
    def _discard(path: Path, error: Exception) -> None:
        """Leave what cannot be read where it is; the search will replace it."""


def open_reading(request: SearchRequest) -> Session:
    """Open a session that reads the cache and writes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        session = open_for_target(replace(request, runs_dir=scratch))
    root = Path(request.runs_dir) / CACHE / session.loaded.fingerprint
    session.cache = _CacheToRead(root)
    return session


def look_up_study(
    request: SearchRequest, destination: Destination, identity: dict[str, Any]
) -> tuple[str, StudyRecord | None]:
    """Find the study that the search would go on with, or the name that a new one would have."""
    with _copied(destination) as copy:
        name, study = choose_study(request, copy, identity)
        return name, None if study is None else to_record(study, destination.runs_dir / name)


def study_to_resume(request: SearchRequest) -> StudyRecord:
    """Read the study to go on with; the latest when none is named."""
    runs_dir = Path(request.runs_dir).expanduser().absolute()
    name, url, _ = find_study(request.resume or None, runs_dir, request.storage)
    with _copied(Destination(name, runs_dir, url)) as copy:
        return read_study(name, copy.runs_dir, copy.storage)


@contextmanager
def _copied(destination: Destination) -> Iterator[Destination]:
    """Copies, for a while, of the files that a study may be in: opening SQLite writes to it.

    A storage on a server is the same.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, url = Path(scratch), destination.storage
        if url is None:
            for database in destination.runs_dir.glob("*/study.db*"):
                (folder / database.parent.name).mkdir(exist_ok=True)
                shutil.copy(database, folder / database.parent.name)
        elif (original := file_of(storage_url(url))) is not None:
            for file in original.parent.glob(f"{original.name}*"):
                shutil.copy(file, folder)
            url = storage_url(url).replace(str(original), str(folder / original.name))
        yield replace(destination, runs_dir=folder, storage=url)


def look_up_cache(
    session: Session, space: Space, level: EffortLevel, *, fit_all: bool, begun: bool
) -> tuple[Cached, Fits]:
    """What the cache holds, and about what must be fitted besides: samples, and what plans take.

    Where trials have been made what plans take is fitted.
    """
    specs, folder = session.workbench.inventory.layers, session.cache.root
    metrics = KeptMetrics(session.cache, session.statistics_key, tuple(spec.name for spec in specs))
    absent = metrics.missing()
    looked_up = not absent and session.workbench.inventory.dense_bytes <= MOST_BYTES_TO_LOOK_UP
    builder = LayerBuilder(session.workbench, metrics, session.cache)
    wanted: Fits = Counter()
    if fit_all:
        for spec in specs:
            wanted.update((spec.shape, method.name) for method in space.options(spec))
    else:
        for spec, method in sampled_fits(space.options, specs, level.samples):
            wanted[spec.shape, method.name] += 1
        for spec in () if begun else specs:
            wanted.update(_taken(spec, space, level))
    known: Fits = Counter()
    for spec in specs if looked_up else ():
        fits = session.cache.record("fits", builder.content_of(spec.name)) or {}
        known.update(
            (spec.shape, method.name)
            for method in space.options(spec)
            if builder.key(spec.name, method) in fits
        )
    wanted = Counter({key: n for key, n in wanted.items() if key[1] != Keep.name})
    fits_known = known.total() if looked_up or absent else None
    return Cached(folder, len(specs) - len(absent), fits_known), wanted - known


def _taken(spec: LayerSpec, space: Space, level: EffortLevel) -> Fits:
    """About what plans take of the options of a matrix: codes, where there are any on offer."""
    methods = [method for method in space.options(spec) if method != Keep()]
    codes = [m for m in methods if m.bits_per_element and not m.factorised] or methods
    count = min(len(codes), round(TAKEN * (level.sizes + 1)))
    names = sorted(Counter(method.name for method in codes))
    return Counter((spec.shape, names[turn % len(names)]) for turn in range(count))


def options_to_time(session: Session, space: Space) -> int:
    """How many options of a space the table of latencies lacks, each once for equal layers."""
    table = LatencyTable(session.workbench, session.cache, unused=session.unreached)
    return table.untimed({spec.name: space.options(spec) for spec in table.specs})
