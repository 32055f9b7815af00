"""Proposes knobs with Optuna's samplers, from the trials that have knobs.

Samplers infer their space from what all trials of a study have in common, which uniform baselines
spoil: they have no knobs. So a sampler works on a study in memory that holds the trials with knobs
alone, and what it proposes is recorded in the stored study.

Each proposal is drawn by a sampler made for it, seeded by the number of trials before: a resumed
search proposes what it would have proposed had it not been cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.driver.proposing.knobs import Knobs

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
    """A sampler of knobs that learns from finished trials; ``random`` learns nothing.

    Args:
        name: one of ``requests.verbs.SAMPLERS``.
        seed: of the sampler.
        limit_ms: limit of latency, if there is one: latency is then a third objective and a
            constraint, and its price a knob.
    """

    def __init__(self, name: str, seed: int, *, limit_ms: float | None = None) -> None:
        self.name, self.seed = name, seed
        self.limit_ms, self.priced = limit_ms, limit_ms is not None
        self._memory = optuna.create_study(directions=[MINIMIZE] * (3 if self.priced else 2))
        self._asked: dict[Knobs, Trial] = {}  # proposed, with what the sampler noted of them

    def proposals(self, before: int, most: int) -> Iterator[Knobs]:
        """Propose knobs, again and again, knowing all that was learned before the first.

        Whoever asks for another one has no use for the last.

        Args:
            before: trials that the study has before this one; with the seed and what was learned it
                determines the proposals.
            most: proposals to make at most.
        """
        sampler = self._sampler(before)
        for _ in range(most):
            self._memory.sampler = sampler
            trial = self._memory.ask()
            knobs = Knobs.suggest(trial, priced=self.priced)
            self._asked[knobs] = trial
            yield knobs
            self._memory.tell(self._asked.pop(knobs), state=TrialState.FAIL)

    def learn(self, trial: FrozenTrial, values: Sequence[float] | None) -> None:
        """Learn what a trial with knobs came to.

        Args:
            trial: of the stored study; its parameters count.
            values: see ``values_of``, as measured or estimated; ``None`` where nothing is known of
                them.
        """
        if not trial.params:
            return
        knobs = Knobs(**trial.params)
        learned = self._asked.pop(knobs, None)
        if values is None:
            if learned is not None:
                self._memory.tell(learned, state=TrialState.FAIL)
            return
        learned = learned or self._replayed(knobs)
        if self.limit_ms is not None:  # of every trial: samplers want the same constraints of all
            learned.set_constraint("latency", values[2] / self.limit_ms - 1)
        self._memory.tell(learned, list(values[: len(self._memory.directions)]))

    def _replayed(self, knobs: Knobs) -> Trial:
        """Start a trial with given knobs, as if the sampler had proposed them.

        Genetic algorithms breed only from trials that bear the number of a generation, which they
        note when they propose one; they note the parents of a generation with its first trial.
        """
        trial = ask_with(self._memory, knobs, priced=self.priced)
        sampler = self._sampler(0)
        if isinstance(sampler, BaseGASampler):
            frozen = self._memory.get_trials(deepcopy=False)[trial.number]
            generation = sampler.get_trial_generation(self._memory, frozen)
            sampler.get_parent_population(self._memory, generation)
        return trial

    def _sampler(self, before: int) -> BaseSampler:
        return make_sampler(
            self.name, int(np.random.SeedSequence([self.seed, before]).generate_state(1)[0])
        )
