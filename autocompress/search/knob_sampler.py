"""Proposes knobs with Optuna's samplers, from the trials that have knobs.

Samplers infer their space from what all trials of a study have in common, which hand-written plans
spoil: they have no knobs. So a sampler works on a study in memory that holds the trials with knobs
alone, and what it proposes is recorded in the stored study.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from autocompress.search.knobs import Knobs

SAMPLERS = ("auto", "tpe", "nsga2", "gp", "random")


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


def ask_with(study: optuna.Study, knobs: Knobs | None) -> Trial:
    """Start a trial of the stored study, with given knobs as its parameters or with none."""
    study.sampler = _Recorder({} if knobs is None else asdict(knobs))
    trial = study.ask()
    if knobs is not None:
        Knobs.suggest(trial)
    return trial


class KnobSampler:
    """A sampler of knobs that learns from the trials of a stored study.

    Args:
        study: the stored study.
        name: one of ``SAMPLERS``.
        seed: of the sampler; a resumed search draws on from where the trials stand.
    """

    def __init__(self, study: optuna.Study, name: str, seed: int) -> None:
        self.stored = study
        self._seen: set[int] = set()
        offset = len(study.get_trials(deepcopy=False))
        self._memory = optuna.create_study(
            directions=study.directions, sampler=make_sampler(name, seed + offset)
        )

    def propose(self) -> Knobs:
        """Propose the next knobs, knowing all finished trials."""
        self._learn()
        trial = self._memory.ask()
        knobs = Knobs.suggest(trial)
        self._memory.tell(trial, state=TrialState.FAIL)  # its outcome arrives with the stored trial
        return knobs

    def _learn(self) -> None:
        finished = (TrialState.COMPLETE,)
        for trial in self.stored.get_trials(deepcopy=False, states=finished):
            if trial.params and trial.number not in self._seen:
                self._memory.add_trial(trial)
                self._seen.add(trial.number)
