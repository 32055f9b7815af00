"""Paths as people type them: made absolute where a request is read, and shown as they were meant.

What a study keeps, and what a worker on another machine or in another folder is handed, must name
the same file wherever it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

BUNDLED, BUNDLED_MODEL = "bundled", "autocompress-demo"  # which are no paths: ./bundled is one


def located(named: str | None, is_there: Callable[[Path], bool] = Path.exists) -> str | None:
    """The absolute path of a file or folder that is there; any other name stays as it is.

    Args:
        named: a path; or a name on the hub, of a shipped space, or ``None``.
        is_there: whether a path is the kind of thing that is named.
    """
    if named is None or named in (BUNDLED, BUNDLED_MODEL):
        return named
    path = Path(named).expanduser()
    return str(path.absolute()) if is_there(path) else named


def shown(path: str | Path) -> str:
    """A path as a person would type it here: from the current folder on where it lies in it."""
    return str(path).removeprefix(f"{Path.cwd()}{os.sep}")
