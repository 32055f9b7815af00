"""Tasks that an engine does side by side, as it asks for them and tells their results."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from autocompress.crew import Done, Task
from autocompress.driver.engines.base import Errand, Result
from autocompress.errors import TimeIsUp


class Batch:
    """Speaks ``AskTell`` for some tasks; see ``Crew.do`` for the arguments."""

    def __init__(self, tasks: Sequence[Task], done: Done, deadline: float) -> None:
        self._left = deque(Errand(number, task) for number, task in enumerate(tasks))
        self._count, self._done, self._deadline = len(tasks), done, deadline
        self._values: dict[int, Any] = {}

    @property
    def finished(self) -> bool:
        """See ``AskTell``."""
        return not self._left or time.monotonic() >= self._deadline

    def ask(self) -> Errand | None:
        """See ``AskTell``."""
        return None if self.finished else self._left.popleft()

    def tell(self, answer: Result) -> None:
        """See ``AskTell``.

        Raises:
            AutocompressError: what the task raised.
        """
        if answer.error is not None:
            raise answer.error
        self._values[answer.number] = answer.value
        self._done(answer.number, answer.value)

    def values(self) -> list[Any]:
        """What came of the tasks, in their order.

        Raises:
            TimeIsUp: not all were done in time.
        """
        if len(self._values) < self._count:
            raise TimeIsUp.during("fitting options")
        return [self._values[number] for number in range(self._count)]
