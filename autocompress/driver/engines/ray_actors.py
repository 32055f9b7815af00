"""Actors of Ray that do errands: a model each, kept from one errand to the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from autocompress.driver.engines.answering import RETRIES, answer, lost, open_measure
from autocompress.driver.engines.base import Answer, AskTell, OpenWorker, Work
from autocompress.errors import AutocompressError

logger = logging.getLogger(__name__)

# Actors in a row that end before they are ready; then the next would end so, too.
MOST_FAILED_STARTS = 3
HEARD_AGAIN_S = 0.5  # that one round of listening takes at most


class RayActors:
    """Does as much at a time as it has actors that are ready.

    What an actor was at that is lost, with its node or alone, another one does. One takes its
    place, as soon as some node has room.

    Args:
        open_worker: see ``RayTune``.
        workers: actors.
        resources: that Ray sets aside for each.
    """

    def __init__(
        self, open_worker: OpenWorker, workers: int, resources: Mapping[str, float]
    ) -> None:
        self._open_worker, self._resources = open_worker, resources
        self._kind: Any = ray.remote(_Worker)
        self._starting: dict[Any, Any] = {}  # actors by what they say when they are ready
        self._working: dict[Any, tuple[Any, Work]] = {}  # with their work, by its answer
        self._idle: list[Any] = []
        self._again: list[Work] = []  # whose actors were lost
        self._losses: dict[int, int] = {}  # of each such work
        self._failed_starts = 0
        for _ in range(workers):
            self._start()

    def drive(self, search: AskTell) -> None:
        """See ``Engine``."""
        self._losses.clear()
        while self._give(search):
            heard, _ = ray.wait([*self._starting, *self._working], timeout=HEARD_AGAIN_S)
            for said in heard:
                answered = self._hear(said)
                if answered is not None:
                    search.tell(answered)

    def end(self) -> None:
        """End the actors, at once."""
        busy = [actor for actor, _ in self._working.values()]
        for actor in (*self._starting.values(), *busy, *self._idle):
            with suppress(RayError):
                ray.kill(actor)
        self._starting, self._working, self._idle, self._again = {}, {}, [], []

    def _start(self) -> None:
        actor = self._kind.options(**self._resources).remote(self._open_worker)
        self._starting[actor.refusal.remote()] = actor

    def _give(self, search: AskTell) -> bool:
        """Give every idle actor work while there is some; whether there is anything to wait for."""
        while self._idle:
            work = self._again.pop() if self._again else None if search.finished else search.ask()
            if work is None:
                break
            actor = self._idle.pop()
            self._working[actor.do.remote(work)] = actor, work
        return bool(self._working or self._again) or not (search.finished or self._idle)

    def _hear(self, said: Any) -> Answer | None:
        if said in self._starting:
            self._ready(said)
            return None
        actor, work = self._working.pop(said)
        try:
            answered: Answer = ray.get(said)
        except RayActorError:
            logger.warning("a worker of Ray was lost; what it was at is done again")
            self._start()
            return self._lost(work)
        self._idle.append(actor)
        return answered

    def _ready(self, said: Any) -> None:
        actor = self._starting.pop(said)
        try:
            refusal = ray.get(said)
        except RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts == MOST_FAILED_STARTS:
                often = f"{MOST_FAILED_STARTS} times in a row"
                raise AutocompressError(
                    f"no worker of Ray can start: it ended before it was ready, {often}",
                    hint="Mostly memory runs out: try fewer --workers.",
                ) from error
            self._start()
            return
        if refusal is not None:
            raise refusal
        self._failed_starts = 0
        self._idle.append(actor)

    def _lost(self, work: Work) -> Answer | None:
        self._losses[work.number] = self._losses.get(work.number, 0) + 1
        if self._losses[work.number] > RETRIES:
            return lost(work, "with its actor or node")
        self._again.append(work)
        return None


class _Worker:
    """What an actor is: opened once, it does one piece of work after the other."""

    def __init__(self, open_worker: OpenWorker) -> None:
        self._refusal: AutocompressError | None = None
        try:
            self._measure = open_measure(open_worker)
        except AutocompressError as error:
            self._refusal = error

    def refusal(self) -> AutocompressError | None:
        """Why it cannot work; ``None`` as soon as it can."""
        return self._refusal

    def do(self, work: Work) -> Answer:
        """Do a piece of work."""
        return answer(self._measure, work)
