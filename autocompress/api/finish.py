"""What is done with the plans that a search has found, before it calls its front final."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from autocompress.errors import ConfigurationError
from autocompress.healing.settings import HealSettings


@dataclass(frozen=True)
class Finish:
    """How plans are healed at the end of a search, and which.

    Attributes:
        settings: how to heal each; without steps its matrices are only fitted anew.
        whole_front: all members of the front, or the best plan within the limits alone.
        data: text to heal on; the calibration text when left out.
    """

    settings: HealSettings
    whole_front: bool
    data: str | None = None

    @classmethod
    def of(
        cls, heal: int | None = None, data: str | None = None, *, refit: bool = True, seed: int = 0
    ) -> Self | None:
        """What ``--heal STEPS``, ``--heal-data`` and ``--no-refit`` ask for; maybe nothing.

        Raises:
            ConfigurationError: a text to heal on without steps, or steps that cannot be.
        """
        if heal is not None:
            seed = seed if heal else 0  # without steps there is nothing to draw
            return cls(HealSettings(heal, seed=seed, refit=refit), whole_front=True, data=data)
        if data is not None:
            raise ConfigurationError(
                "--heal-data names a text to heal the front on",
                got=data,
                hint="Say with --heal how many steps to heal it for, such as --heal 200.",
            )
        return cls(HealSettings(steps=0), whole_front=False) if refit else None


REFIT_BEST = Finish.of()
