"""Gives memory that was freed back to the system, and says how much was held at most."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path


def give_back_memory() -> None:
    """Let the C library return what it holds for later use, where it is glibc.

    It keeps freed tensors of up to 32 MiB in heaps that only shrink from their ends, so the
    resident memory of a long run over a large model grows to more than is in use. (A lower limit,
    `mallopt(M_MMAP_THRESHOLD)`, returns more of it, and slows small models by a third.)
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


_before: list[int] = []  # the most that was held before the last ``begin_peak``


def begin_peak() -> None:
    """Let ``peak_since`` count from here on, where Linux allows it."""
    held = peak_since()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        if held is not None:
            _before[:] = [max([held, *_before])]


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held at once; ``None`` where the system does not say.

    See ``peak_since``.
    """
    since = peak_since()
    return None if since is None else max([since, *_before])


def peak_since() -> int | None:
    """The most memory held since the last ``begin_peak``; since the start where that does nothing.

    Resident memory, libraries and mapped files included: ``VmHWM`` of Linux, else ``getrusage``,
    whose figure on Linux a process takes over from the one that started it.
    """
    if sys.platform == "win32":
        return None
    if sys.platform.startswith("linux"):
        status = Path("/proc/self/status")
        for line in status.read_text("ascii").splitlines() if status.is_file() else ():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
