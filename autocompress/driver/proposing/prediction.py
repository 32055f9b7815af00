"""A plan for a new budget from a finished study: allocated at once, and predicted, not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import Proposer
from autocompress.errors import BudgetUnreachable
from autocompress.judging.against_dense import increase
from autocompress.judging.dominance import selection_loss
from autocompress.methods.plan import Plan
from autocompress.studies.study import BASELINE, StudyRecord
from autocompress.units import format_bytes


@dataclass(frozen=True)
class Prediction:
    """A plan that nobody has measured.

    Attributes:
        plan: the plan.
        bytes: stored bytes of the whole model, in closed form.
        divergence: what its divergence from the dense model may be; ``None`` when the study has no
            trials to go by.
        increase: the same of the increase of the loss.
        trials: how many measured trials these are read off.
        beyond: the plan is worse than every one of them by its score: the figures are lower bounds.
    """

    plan: Plan
    bytes: int
    divergence: float | None
    increase: float | None
    trials: int
    beyond: bool = False


def predict(study: StudyRecord, proposer: Proposer, limit_bytes: int) -> Prediction:
    """Allocate within a limit, and read off the measured trials what that may come to.

    Scores of measured trials under the same menu are set against what they were measured at;
    between two of them divergence (in logarithms) and increase are interpolated, beyond them
    constant.

    Raises:
        BudgetUnreachable: no plan is that small.
    """
    least = proposer.least_bytes()
    if limit_bytes < least:
        raise BudgetUnreachable(
            "no plan of the study's menu is as small as the budget",
            got=format_bytes(limit_bytes),
            wanted=f"at least {format_bytes(least)} "
            f"({math.floor(study.dense_bytes / least * 100) / 100:.2f}x)",
        )
    plan = proposer.allocated(Knobs(), min(limit_bytes, study.dense_bytes))
    score = proposer.score(plan, Knobs())
    known = sorted(
        (proposer.score(trial.plan, Knobs()), trial.selection.divergence, increase(study, trial))
        for trial in study.unhealed.complete
        if trial.phase != BASELINE
        and trial.selection is not None
        and math.isfinite(selection_loss(trial))
    )
    known = [(at, apart, increased) for at, apart, increased in known if at > 0 and apart > 0]
    size = proposer.inventory.plan_bytes(plan)
    if not known:
        return Prediction(plan, size, None, None, 0)
    if score <= 0:
        return Prediction(plan, size, 0.0, 0.0, len(known))
    scores, divergences, increases = (np.array(column) for column in zip(*known, strict=True))
    place, places = math.log(score), np.log(scores)
    divergence = math.exp(np.interp(place, places, np.log(divergences)))
    increased = float(np.interp(place, places, increases))
    return Prediction(
        plan, size, divergence, increased, len(known), beyond=bool(score > scores[-1])
    )
