"""What is wrong with a file: every problem as a record, and the error that carries them all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

from autocompress.errors import ConfigurationError, RecipeError

SHOWN_LENGTH = 80
_PLAIN_KEY = re.compile(r"[\w*-]+")


@dataclass(frozen=True)
class Problem:
    """One error of a file.

    Attributes:
        line: line of the file, from 1.
        key: path of the key, such as ``methods.quantize.bits[1]``; empty for the whole file.
        got: what stands there.
        allowed: what may stand there.
        nearest: the allowed name nearest to what was got, or empty.
    """

    line: int
    key: str
    got: str
    allowed: str
    nearest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        near = f" (did you mean {self.nearest}?)" if self.nearest else ""
        key = f"{self.key}: " if self.key else ""
        return f"line {self.line}, {key}got {self.got}, allowed: {self.allowed}{near}"


class FileError(ConfigurationError):
    """A file with errors, all of them.

    Args:
        what: the file, and what it was read as.
        problems: at least one.
    """

    def __init__(self, what: str, problems: Iterable[Problem], *, hint: str = "") -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        self._file, self._hint = what, hint
        super().__init__(
            f"{what} has {count}", got="\n  " + "\n  ".join(map(str, self.problems)), hint=hint
        )

    def _paragraph(self) -> str:
        tail = f"\n{self.hint}" if self.hint else ""
        return f"{self.what}:{self.got}{tail}"

    def within(self, place: str) -> Self:
        """Return the same error with a place put before it."""
        return type(self)(f"{place}: {self._file}", self.problems, hint=self._hint)


class SpaceFileError(FileError):
    """A search space with errors."""


class RecipeFileError(FileError, RecipeError):
    """A recipe with errors."""


def nearest_name(got: object, names: Iterable[str]) -> str:
    """The one of the names that a mistyped one was probably meant to be, or an empty text."""
    return next(iter(difflib.get_close_matches(str(got), list(names), n=1, cutoff=0.5)), "")


def nearest_glob(glob: str, names: Sequence[str]) -> str:
    """The glob with its plain parts between dots as the names have them, if that matches any."""
    parts = sorted({part for name in names for part in name.split(".")})
    words = (
        part if set(part) & set("*?[") or not part else nearest_name(part, parts) or part
        for part in glob.split(".")
    )
    near = ".".join(words)
    if any(fnmatchcase(name, near) for name in names):
        return near
    return nearest_name(glob.replace("*", ""), names)


def key_path(parts: Sequence[str | int]) -> str:
    """Write a path of keys and indices, ``rules[2].match.names``, quoting all but plain words."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _PLAIN_KEY.fullmatch(part) else repr(part)
            text += f".{shown}" if text else shown
    return text


def shown(value: object) -> str:
    """Write a value as the file has it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."
