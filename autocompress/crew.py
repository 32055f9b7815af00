"""Who does work that can be done anywhere: tasks that several processes or machines share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Done = Callable[[int, Any], None]
"""Told the number of a task and what came of it, as soon as it is done."""


class Task(Protocol):
    """A piece of work. Picklable, and small: what is large goes through the content store."""

    def done_on(self, desk: Any) -> Any:
        """Do it.

        Args:
            desk: what a worker has at hand: the model, its texts and the content store.

        Returns:
            What came of it, which can be pickled.
        """


class Crew(Protocol):
    """Does tasks side by side."""

    @property
    def workers(self) -> int:
        """How many tasks it does at a time."""

    @property
    def idle(self) -> bool:
        """Whether it does tasks now; else whoever has them does them."""

    def do(
        self,
        tasks: Sequence[Task],
        done: Done = lambda _number, _value: None,
        deadline: float = math.inf,
    ) -> list[Any]:
        """Do tasks, and return what came of each, in their order.

        Args:
            tasks: those that take longest first.
            done: see ``Done``.
            deadline: of ``time.monotonic``, after which none is begun.

        Raises:
            TimeIsUp: the deadline passed before all were done; what these kept is kept.
            AutocompressError: what one of them raised.
        """
