"""Run folders: which study each is of, and where that is stored."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress.atomic_write import written_whole
from autocompress.errors import StorageError, StudyError
from autocompress.studies.storage import default_storage, storage_url

POINTER = "study.json"


def unwritable(folder: Path, error: Exception) -> StorageError:
    """The error that a run folder cannot be written."""
    return StorageError(
        f"the run folder {folder} cannot be written: {error}",
        hint="Free some space, or name a folder you may write to with --runs-dir.",
    )


def write_pointer(folder: Path, name: str, url: str) -> None:
    """Write into a run folder which study it is of, and where that is stored."""
    own = storage_url(url) == default_storage(folder)  # a run folder may be moved
    content = {"study": name, "storage": None if own else storage_url(url)}
    with written_whole(folder / POINTER) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def find_study(
    name: str | None, runs_dir: Path, storage: str | None = None
) -> tuple[str, str, Path]:
    """Find a study: its name, the URL of its storage, and its run folder.

    Args:
        name: the study; ``None`` for the latest that was started or resumed.
        runs_dir: where run folders are.
        storage: URL of the storage, when the run folder is elsewhere.

    Raises:
        StudyError: there is none, or none of that name; the message lists those there are.
    """
    pointers = sorted(
        runs_dir.glob(f"*/{POINTER}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    names = [path.parent.name for path in pointers]
    if name is None:
        if not pointers:
            raise StudyError(
                f"there is no study in {runs_dir}",
                hint="Start one with: autocompress search --budget 10x",
            )
        name = names[0]
    if storage is None:
        if name not in names:
            known = ", ".join(names) or "none"
            raise StudyError(
                "unknown study", got=repr(name), wanted=f"one of those in {runs_dir}: {known}"
            )
        storage = _storage_of(runs_dir / name / POINTER)
    return name, storage, runs_dir / name


def _storage_of(pointer: Path) -> str:
    try:
        named = json.loads(pointer.read_text())["storage"]
        return default_storage(pointer.parent) if named is None else str(named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the file {pointer}, which says where the study is stored, cannot be read: {error!r}",
            hint="Name the storage with --storage; by default it is study.db beside that file.",
        ) from error


def touch(folder: Path, name: str, url: str) -> None:
    """Make a study the latest, also where only its storage was there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_pointer(folder, name, url)
    except OSError as error:
        raise unwritable(folder, error) from error
