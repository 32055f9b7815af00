"""How long work tells that it goes on.

The command line draws it; the Python API is silent unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Draws one bar per task."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Start a task of so many steps; call what it gives with the steps done since."""

    def note(self, message: str) -> None:
        """Say one line."""


class Silent:
    """Draws nothing."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:  # noqa: ARG002
        """Count nothing."""
        return nullcontext(lambda _steps: None)

    def note(self, message: str) -> None:
        """Say nothing."""


class Notes(Silent):
    """Draws nothing, and keeps every line that is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        """Keep a line."""
        self.said.append(message)


SILENT = Silent()
