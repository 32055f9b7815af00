"""What the cache of a runs folder holds, by model and kind, and the removal of what is not needed.

Everything in the cache can be computed again. A model has a folder of its own, named by its
fingerprint, with a note of what it is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import StorageError
from autocompress.store import NOTE

UNKNOWN = "unknown model"  # of a folder whose note is gone


@dataclass(frozen=True)
class Held:
    """Files of one kind that the cache holds of one model.

    Attributes:
        model: what a person called it.
        fingerprint: name of its folder.
        kind: ``statistics``, ``layers``, ``fits``, ``prices`` and the like.
        files: how many.
        bytes: what they take.
        used: when one of them was last read or written, in seconds of ``time.time``.
    """

    model: str
    fingerprint: str
    kind: str
    files: int
    bytes: int
    used: float

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _File:
    path: Path
    model: str
    fingerprint: str
    kind: str
    bytes: int
    used: float


def contents(root: Path) -> list[Held]:
    """What a cache folder holds, the largest first; nothing where there is none."""
    groups: dict[tuple[str, str, str], list[_File]] = {}
    for file in _files(root):
        groups.setdefault((file.model, file.fingerprint, file.kind), []).append(file)
    held = [
        Held(*key, len(files), sum(f.bytes for f in files), max(f.used for f in files))
        for key, files in groups.items()
    ]
    return sorted(held, key=lambda each: -each.bytes)


def remove(
    root: Path,
    *,
    models: Sequence[str] = (),
    older_than: float | None = None,
    down_to: float | None = None,
) -> int:
    """Remove files from a cache folder and return the bytes that they took.

    Args:
        root: the folder.
        models: only of these, by what they were called or by fingerprint.
        older_than: only what nobody has used for so many seconds.
        down_to: the least recently used first, until what these models hold takes so many bytes.

    Raises:
        StorageError: a file cannot be removed.
    """
    files = [
        file for file in _files(root) if not models or {file.model, file.fingerprint} & set(models)
    ]
    excess = float("inf") if down_to is None else sum(file.bytes for file in files) - down_to
    now, removed = time.time(), 0
    for file in sorted(files, key=lambda each: each.used):
        if removed >= excess:
            break
        if older_than is not None and now - file.used < older_than:
            continue
        _unlink(file.path)
        removed += file.bytes
    _drop_empty_folders(root)
    return removed


def _files(root: Path) -> Iterator[_File]:
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.is_dir():
            continue
        model = _called(folder)
        for path in folder.rglob("*"):
            if path.name == NOTE or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # another process has removed it
                status = path.stat()
                kind = path.relative_to(folder).parts[0]
                yield _File(path, model, folder.name, kind, status.st_size, status.st_mtime)


def _called(folder: Path) -> str:
    try:
        return str(json.loads((folder / NOTE).read_text("utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the cache file {path} cannot be removed: {error.strerror}") from error


def _drop_empty_folders(root: Path) -> None:
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and not any(p.is_file() and p.name != NOTE for p in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
