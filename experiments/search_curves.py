"""What a search has come to after each evaluation, and how that is kept between runs."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.judging.dominance import HYPERVOLUME_REFERENCE_INCREASE, area_below


@dataclass(frozen=True)
class Point:
    """What a plan costs.

    Attributes:
        bytes: of the stored model.
        increase: of log-perplexity over the dense model's, nats per token.
        kl: divergence from the dense model, nats per token.
    """

    bytes: int
    increase: float
    kl: float


def hypervolumes(points: Sequence[Point], dense_bytes: int) -> list[float]:
    """The hypervolume after each evaluation, in the plane in which a study's is measured."""
    plane = [(-math.log2(dense_bytes / point.bytes), point.increase) for point in points]
    corner = (0.0, HYPERVOLUME_REFERENCE_INCREASE)
    return [area_below(plane[: count + 1], corner) for count in range(len(plane))]


def lowest_increases(points: Sequence[Point], limit: int) -> list[float]:
    """The lowest increase within a limit of bytes after each evaluation; at first infinite."""
    lowest = math.inf
    return [
        lowest := min(lowest, point.increase if point.bytes <= limit else math.inf)
        for point in points
    ]


def kept(
    path: Path | None,
    settings: dict[str, Any],
    make: Callable[[], list[Any]],
    ignoring: Collection[str] = (),
) -> list[Any]:
    """Rows that a file holds for the same settings, else made now and written to it.

    Args:
        path: the JSON file; nothing is kept when left out.
        settings: what determines the rows.
        make: makes them, as mappings.
        ignoring: names of settings that may differ from those in the file; it is said if they do.
    """
    if path is not None and path.exists():
        found = json.loads(path.read_text())
        differing = {name for name in settings if found["settings"].get(name) != settings[name]}
        if differing <= set(ignoring):
            print(f"  as kept in {path}", *(f"(made with another {name})" for name in differing))
            rows: list[Any] = found["rows"]
            return rows
    rows = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings, "rows": rows}))
    return rows


def kept_points(
    path: Path | None,
    settings: dict[str, Any],
    make: Callable[[], list[Point]],
    ignoring: Collection[str] = (),
) -> list[Point]:
    """``kept`` for points."""
    rows = kept(path, settings, lambda: [asdict(point) for point in make()], ignoring)
    return [Point(**row) for row in rows]


def add_keeping(parser: argparse.ArgumentParser) -> None:
    """Where to keep what the baselines find."""
    parser.add_argument(
        "--out", type=Path, help="folder to keep what the baselines find in, as JSON"
    )
    parser.add_argument(
        "--any-menu",
        dest="ignoring",
        action="store_const",
        const=("menu",),
        default=(),
        help="take what is kept there also where the options were fitted by another version",
    )
