"""How long to search: trials, time, patience."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from autocompress.driver.driver import Effort
from autocompress.driver.proposing.shares import Planned
from autocompress.errors import ConfigurationError
from autocompress.session.efforts import EffortLevel
from autocompress.units import parse_duration


@dataclass(frozen=True)
class Endurance:
    """How long to search, which changes no trial but the last.

    Attributes:
        trials: that the study shall have in all; as many as the effort says when left out.
        time: no trial starts so long after the search began: ``10m``, or seconds.
        patience: searched trials in a row without the front growing, before the end.
    """

    trials: int | None = None
    time: str | float | None = None
    patience: int | None = None

    def effort(self, level: EffortLevel, sampler: str, seed: int) -> Effort:
        """Check all and start the clock.

        Args:
            level: how much is planned.
            sampler: proposes the knobs.
            seed: of the sampler.

        Raises:
            ConfigurationError: no trials, no time, or no patience.
        """
        trials = level.trials if self.trials is None else self.trials
        seconds = parse_duration(self.time) if isinstance(self.time, str) else self.time
        if trials < 1:
            raise ConfigurationError("--trials is too low", got=trials, wanted="at least 1")
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(
                "--patience is too low", got=self.patience, wanted="at least 1"
            )
        if seconds is not None and seconds <= 0:
            what = "--time is too short"
            raise ConfigurationError(what, got=seconds, wanted="more than 0 seconds")
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        planned = Planned(level.by_hand, level.sizes, level.trials)
        return Effort(trials, deadline, self.patience, sampler, seed, planned)


DEFAULT_ENDURANCE = Endurance()
