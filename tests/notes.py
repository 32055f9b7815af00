"""Progress that remembers what it was told."""

from __future__ import annotations

from autocompress.progress import Silent


class Notes(Silent):
    """Draws nothing, and keeps every line that was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)
