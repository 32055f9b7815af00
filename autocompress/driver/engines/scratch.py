"""A folder in the system's temporary one that is removed even if its process is killed: later."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

OWNER = "owner.pid"


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a folder for as long as the block lasts, and remove those of processes that are gone.

    Args:
        prefix: what its name begins with, and those of the others that are looked at.
    """
    _remove_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        (folder / OWNER).write_text(str(os.getpid()))
        yield folder


def _remove_abandoned(prefix: str) -> None:
    for marker in Path(tempfile.gettempdir()).glob(f"{prefix}*/{OWNER}"):
        with suppress(OSError, ValueError):  # another's, or just being removed
            if not psutil.pid_exists(int(marker.read_text())):
                shutil.rmtree(marker.parent, ignore_errors=True)
