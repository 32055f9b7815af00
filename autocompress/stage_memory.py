"""The most memory that a process has held in each stage of its work, by the tasks it tells of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from autocompress.free_memory import begin_peak, peak_since
from autocompress.progress import SILENT, Advance, Progress
from autocompress.units import format_bytes


@dataclass
class StageMemory:
    """Passes on what work tells of itself, and notes the memory of each of its tasks.

    A task inside another counts for both. Nothing is noted where the system does not say.

    Attributes:
        progress: what it passes everything on to.
        peaks: the most resident bytes by task, in the order of their first end.
    """

    progress: Progress = SILENT
    peaks: dict[str, int] = field(default_factory=dict)
    _inner: list[int] = field(default_factory=list)  # of each running task, by those inside it

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See ``Progress``."""
        self._note_so_far()
        self._inner.append(0)
        begin_peak()
        try:
            with self.progress.task(description, total) as advance:
                yield advance
        finally:
            self._note_so_far()
            peak = self._inner.pop()
            stage = description.split(" (")[0]
            if peak:
                self.peaks[stage] = max(peak, self.peaks.get(stage, 0))
            if self._inner:
                self._inner[-1] = max(self._inner[-1], peak)
            begin_peak()

    def _note_so_far(self) -> None:
        if self._inner:
            self._inner[-1] = max(self._inner[-1], peak_since() or 0)

    def note(self, message: str) -> None:
        """See ``Progress``."""
        self.progress.note(message)


def describe_peaks(peaks: Mapping[str, int]) -> str:
    """Say what each stage held: ``calibrating 1.2 GB, fitting samples of each kind 2.1 GB``."""
    return ", ".join(
        f"{stage[:1].lower()}{stage[1:]} {format_bytes(peak)}" for stage, peak in peaks.items()
    )
