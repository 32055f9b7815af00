"""Proposes knobs with Optuna's samplers, from the trials that have knobs.

Samplers infer their space from what all trials of a study have in common, which hand-written plans
spoil: they have no knobs. So a sampler works on a study in memory that holds the trials with knobs
alone, and what it proposes is recorded in the stored study.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress.search.knobs import Knobs

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")
MINIMIZE = optuna.study.StudyDirection.MINIMIZE


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Make a sampler by name; ``auto`` is TPE, which learns from the fewest trials of these."""
    if name in ("auto", "tpe"):
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=6)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)
    return optuna.samplers.RandomSampler(seed=seed)


class _Recorder(BaseSampler):
    """Gives back the values it was handed, so that a trial records them."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    def infer_relative_search_space(self, *_: object) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: object) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, _study: object, _trial: object, param_name: str, *_: object
    ) -> Any:
        return self.values[param_name]


def ask_with(study: optuna.Study, knobs: Knobs | None, *, priced: bool = False) -> Trial:
    """Start a trial of the stored study, with given knobs as its parameters or with none."""
    study.sampler = _Recorder({} if knobs is None else asdict(knobs))
    trial = study.ask()
    if knobs is not None:
        Knobs.suggest(trial, priced=priced)
    return trial


class KnobSampler:
    """A sampler of knobs that learns from finished trials.

    Args:
        name: one of ``SAMPLERS``.
        seed: of the sampler.
        priced: whether latency counts: it is then a third objective, and its price a knob.
    """

    def __init__(self, name: str, seed: int, *, priced: bool = False) -> None:
        self.priced = priced
        self._memory = optuna.create_study(
            directions=[MINIMIZE] * (3 if priced else 2), sampler=make_sampler(name, seed)
        )

    def proposals(self) -> Iterator[Knobs]:
        """Propose knobs, again and again, knowing all that was learned before the first."""
        while True:
            trial = self._memory.ask()
            knobs = Knobs.suggest(trial, priced=self.priced)
            # Its outcome arrives with the stored trial.
            self._memory.tell(trial, state=TrialState.FAIL)
            yield knobs

    def learn(self, trial: FrozenTrial, values: Sequence[float]) -> None:
        """Learn what a trial with knobs came to.

        Args:
            trial: of the stored study; its parameters and constraints count.
            values: perplexity, bytes and milliseconds, as measured or estimated.
        """
        if trial.params:
            self._memory.add_trial(
                create_trial(
                    params=trial.params,
                    distributions=trial.distributions,
                    values=list(values[: len(self._memory.directions)]),
                    system_attrs=trial.system_attrs,
                )
            )
