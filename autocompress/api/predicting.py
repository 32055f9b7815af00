"""A plan for a new budget from a finished study, in the time that it takes to allocate it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.deploy.targets import target_of
from autocompress.driver.proposing.prediction import Prediction, predict
from autocompress.driver.proposing.proposer import Proposer
from autocompress.space.recipe_file import save_recipe
from autocompress.studies.stored_menu import read_menu
from autocompress.studies.study import StudyRecord
from autocompress.surgery.native import NATIVE
from autocompress.units import Budget


@dataclass(frozen=True)
class PredictedPlan:
    """What a study predicts of a budget, and the recipe that was written.

    Attributes:
        study: the study.
        prediction: the plan, and what it may come to.
        recipe: the file.
    """

    study: StudyRecord
    prediction: Prediction
    recipe: Path

    @property
    def ratio(self) -> float:
        """How many times smaller than the dense model."""
        return self.study.dense_bytes / self.prediction.bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return {
            "study": self.study.name,
            "measured": False,
            "bytes": self.prediction.bytes,
            "ratio": self.ratio,
            **self.study.gauge.named({"predicted_divergence": self.prediction.divergence}),
            "predicted_increase": self.prediction.increase,
            "lower_bounds": self.prediction.beyond,
            "trials": self.prediction.trials,
            "plan_hash": self.prediction.plan.hash,
            "recipe_file": str(self.recipe),
            "recipe": self.prediction.plan.to_recipe(),
        }


def predict_plan(study: StudyRecord, budget: str) -> PredictedPlan:
    """Allocate within a budget of memory, and write the plan as a recipe into the run folder.

    Args:
        study: measured, at least in part.
        budget: most bytes of the stored model: ``7x``, ``25%``, ``1.6MB``.

    Raises:
        ConfigurationError: a budget that is not understood.
        BudgetUnreachable: no plan is that small.
        StudyError: the study has no menu.
    """
    limit = Budget.parse(budget).limits(study.dense_bytes, 1.0).memory_bytes
    limit = study.dense_bytes if limit is None else limit
    target = target_of(study.identity.get("target", NATIVE.name))
    prediction = predict(study, Proposer.of_stored(read_menu(study, target), study.limits), limit)
    path = study.folder / f"predicted-{study.dense_bytes / limit:.3g}x.yaml"
    save_recipe(
        prediction.plan,
        path,
        model=study.model,
        fingerprint=study.fingerprint,
    )
    return PredictedPlan(study, prediction, path)
