"""The objectives there are, and which one a model has."""

from __future__ import annotations

from typing import Any

from autocompress.evaluation.causal import CausalLanguage
from autocompress.evaluation.objective import Objective

# Asked in this order; the last serves every model, and refuses in ``check_scorable`` what it cannot
# score.
OBJECTIVES: list[Objective] = [CausalLanguage()]


def objective_for(model: Any) -> Objective:
    """The objective of a model, by what the model is."""
    return next(objective for objective in OBJECTIVES if objective.serves(model))
