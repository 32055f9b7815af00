"""A study with the questions that a person asks of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autocompress.judging.front import (
    Gain,
    front_of,
    front_to_dict,
    gain_over_baseline,
    point_to_dict,
)
from autocompress.judging.picking import pick
from autocompress.pictures.front_plot import front_figure
from autocompress.pictures.front_png import write_front_png
from autocompress.studies.study import StudyRecord, TrialRecord

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study(StudyRecord):
    """What a search found: a record, with its front, a way to pick, and a table."""

    @classmethod
    def of(cls, record: StudyRecord) -> Self:
        """The same record with these questions."""
        return cls(**{each.name: getattr(record, each.name) for each in fields(StudyRecord)})

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The trials that no other beats in divergence, bytes and latency at once, by bytes."""
        return front_of(self)

    @property
    def gain(self) -> Gain | None:
        """The best beside the uniform plan that fits into the same bytes, where there is one."""
        return gain_over_baseline(self)

    def pick(self, how: str | int = "best", **limits: Any) -> TrialRecord:
        """Choose a trial; see ``autocompress.judging.picking.pick`` for the limits.

        Args:
            how: ``best``, ``knee``, ``smallest``, ``fastest``, or the number of a trial.
            limits: ``max_bytes``, ``worst_figure``, ``max_latency_ms``, ``max_increase``,
                ``min_cosine``.

        Raises:
            BudgetUnreachable: no trial is within the limits; the message names the nearest.
            StudyError: no such trial, or it was not measured.
        """
        return pick(self, str(how), **limits)

    def figure(self) -> Any:
        """The front as a plotly figure, for a notebook."""
        return front_figure(self)

    def png(self) -> Path:
        """The front as a picture in the run folder; the path of the file."""
        return write_front_png(self, self.folder / "front.png")

    def table(self) -> list[dict[str, Any]]:
        """Every measured trial as a plain mapping, as ``front --json`` has it, by bytes.

        ``on_front`` says whether it is on the front.
        """
        front = {trial.number for trial in self.front}
        measured = sorted(self.complete, key=lambda trial: trial.bytes)
        return [
            point_to_dict(self, trial) | {"on_front": trial.number in front} for trial in measured
        ]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame, by the number of the trial; recipes are left out."""
        import pandas as pd

        left_out = ("recipe", "targets", "healing")
        rows = (
            {name: value for name, value in row.items() if name not in left_out}
            for row in self.table()
        )
        return pd.DataFrame(rows).set_index("trial")

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON: what ``front --json`` prints."""
        return front_to_dict(self)
