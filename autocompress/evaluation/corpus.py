"""Texts: their sources, and the promise that calibration, selection and report do not overlap.

A source is the path of a file (UTF-8 text, ``.jsonl`` with a ``text`` field, either as ``.gz``, or
Parquet, ``path.parquet:column``), a hub data set written ``hub/name:config:split``, or ``bundled``:
the texts that come with the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations

from autocompress.errors import DataError
from autocompress.evaluation.encoding import LEAST_TOKENS
from autocompress.evaluation.hub_text import is_hub_source, read_hub_text
from autocompress.evaluation.text_files import file_of, read_text_file
from autocompress.paths import BUNDLED

NOT_NAMED = "not named"  # the name of a text that there is none of
PARTS = ("calibration", "selection", "report")
CUTS = (0.4, 0.6)  # of one source: 40 % calibrates, 20 % selects, 40 % reports
PASSAGE = 200  # characters that two texts must share to count as the same passage
# Share of a text's passages that another text may hold, for licence headers and set phrases.
MOST_SHARED = 0.05

_BUNDLED = {"calibration": "calibrate.txt", "selection": "select.txt", "report": "report.txt"}
_PASSAGE_STARTS = re.compile(r"[.!?\u3002\uff01\uff1f]\s*|\n\s*")
_BOUNDARIES = ("\n\n", "\n", ". ", " ")
_BOUNDARY_REACH = 2000


@dataclass(frozen=True)
class Texts:
    """Three disjoint texts, and where each came from (``names``, by part)."""

    calibration: str
    selection: str
    report: str
    names: Mapping[str, str]


def load_texts(
    *,
    data: str | None = None,
    calibration_data: str | None = None,
    selection_data: str | None = None,
    report_data: str | None = None,
    bundled: bool = True,
) -> Texts:
    """Load the three texts: a part's own source, else its share of ``data``, else the bundled text.

    Args:
        data: one source, cut into contiguous parts of 40 % (calibration), 20 % (selection) and 40 %
            (report).
        calibration_data: source of the calibration text alone.
        selection_data: source of the selection text alone.
        report_data: source of the report text alone.
        bundled: whether the bundled text stands in where no source is named; else that text is
            empty.

    Raises:
        DataError: a source that is missing, unreachable, empty or no text, or texts that share long
            passages.
    """
    own = dict(zip(PARTS, (calibration_data, selection_data, report_data), strict=True))
    if data is not None and all(own.values()):
        raise DataError(
            "--data does nothing beside a source for each of the three texts",
            got=data,
            hint="Leave out --data, or one of the three.",
        )
    shares = (
        {}
        if data in (None, BUNDLED)
        else dict(zip(PARTS, cut_in_three(read_source(data)), strict=True))
    )
    texts, names = {}, {}
    for part in PARTS:
        source = own[part]
        if source is not None:
            texts[part], names[part] = read_source(source, part), source
        elif shares:
            texts[part], names[part] = shares[part], f"{data} ({part} part)"
        elif bundled or data == BUNDLED:
            texts[part], names[part] = bundled_text(part), BUNDLED
        else:
            texts[part], names[part] = "", NOT_NAMED
            continue
        if not texts[part].strip():
            raise DataError(
                f"the {part} text is empty",
                got=names[part],
                wanted=f"at least {LEAST_TOKENS} tokens of text",
            )
    if any(name not in (BUNDLED, NOT_NAMED) for name in names.values()):
        check_disjoint({part: text for part, text in texts.items() if text}, names)
    return Texts(**texts, names=names)


def bundled_text(part: str) -> str:
    """Text that comes with the package: ``calibration``, ``selection`` or ``report``."""
    return (files("autocompress") / "demo" / "text" / _BUNDLED[part]).read_text("utf-8")


def read_source(source: str, part: str = PARTS[0]) -> str:
    """Read one source as text.

    Args:
        source: see above.
        part: which of the bundled texts is meant, where they are named.

    Raises:
        DataError: it does not exist, cannot be read or reached, or holds no text.
    """
    if source == BUNDLED:
        return bundled_text(part)
    if is_hub_source(source) and not file_of(source)[0].exists():
        return read_hub_text(source)
    text = read_text_file(source)
    if not text.strip():
        raise DataError(
            "a data file is empty", got=source, wanted=f"at least {LEAST_TOKENS} tokens of text"
        )
    return text


def cut_in_three(text: str) -> tuple[str, str, str]:
    """Cut a text into 40, 20 and 40 %, each at the end of a paragraph, line, sentence or word."""
    first, second = (_boundary(text, int(share * len(text))) for share in CUTS)
    return text[:first], text[first:second], text[second:]


def _boundary(text: str, start: int) -> int:
    reach = min(_BOUNDARY_REACH, len(text) // 20)
    for mark in _BOUNDARIES:
        found = text.find(mark, start, start + reach)
        if found >= 0:
            return found + len(mark)
    return start


def check_disjoint(texts: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Refuse texts that are the same or share many long passages.

    Quality would be measured on known text. Passages start where a line or sentence starts, so
    shifted copies are found too.

    Raises:
        DataError: two parts share more than ``MOST_SHARED`` of the shorter one's passages.
    """
    passages = {part: _passages(text) for part, text in texts.items()}
    for one, other in combinations(texts, 2):
        shorter = min(one, other, key=lambda part: len(passages[part]))
        common = passages[one].keys() & passages[other].keys()
        if texts[one].strip() == texts[other].strip() or len(common) > MOST_SHARED * len(
            passages[shorter]
        ):
            start = min((passages[shorter][key] for key in common), default=0)
            sample = " ".join(texts[shorter][start : start + 60].split())
            share = len(common) / max(1, len(passages[shorter]))
            raise DataError(
                f"the {one} text ({names[one]}) and the {other} text ({names[other]}) overlap",
                got=f'{share:.0%} shared passages, one of them "{sample}..."',
                wanted="texts that have nothing in common",
                hint="Name another source for one of them; a source that a search is given with "
                "--data is cut into disjoint parts.",
            )


def _passages(text: str) -> dict[int, int]:
    starts = [0, *(match.end() for match in _PASSAGE_STARTS.finditer(text))]
    return {
        hash(text[start : start + PASSAGE]): start
        for start in starts
        if start + PASSAGE <= len(text)
    }
