"""Writes a folder whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from autocompress.errors import ConfigurationError, StorageError


@contextmanager
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside ``out``; it becomes ``out`` if all went well, else it is removed.

    Args:
        out: where the folder is to be. Parents are made.
        overwrite: whether a model that is already there may be replaced. It is there until the new
            one is whole.

    Raises:
        ConfigurationError: ``out`` is a file, or a folder that must not be replaced.
        StorageError: the disk is full or may not be written.
    """
    out = out.expanduser().absolute()
    check_free(out, overwrite)
    made: list[Path] = []
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        made = _make_parents(out.parent)
        partial.mkdir()
        yield partial
        _settle(partial)
        _swap(partial, out)
    except (OSError, SafetensorError) as error:
        _discard(partial, made)
        raise StorageError(
            f"{out} cannot be written: {getattr(error, 'strerror', None) or error}",
            hint="Nothing of it was kept. Free some space, "
            "or name a folder you may write to with --out.",
        ) from error
    except BaseException:
        _discard(partial, made)
        raise


def check_free(out: Path, overwrite: bool) -> None:
    """Make sure that a folder may be written, before any work is put into what is to be written.

    Raises:
        ConfigurationError: it is a file, or a folder that must not be replaced.
    """
    out = out.expanduser().absolute()
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigurationError(
            f"--out {out} is a file", wanted="a folder that does not exist yet"
        )
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigurationError(
            f"--out {out} is not empty",
            wanted="a new or empty folder",
            hint="Replace it with --overwrite.",
        )
    if not (out / "config.json").is_file():
        raise ConfigurationError(
            f"--out {out} holds something else than a model, and is not replaced",
            hint="Name another folder, or empty this one yourself.",
        )


def _make_parents(folder: Path) -> list[Path]:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _discard(partial: Path, made: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # someone else has put something there meanwhile
            return


def _settle(folder: Path) -> None:
    """Make every file readable like any other, and wait until it is on the disk."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (*folder.iterdir(), folder):
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors writes files that only their owner can read
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
