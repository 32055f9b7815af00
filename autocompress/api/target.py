"""What to compress a model to: a recipe, or what one exact allocation gives at a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autocompress.api.session import Session, read_space, tied_names
from autocompress.config.document import Document, read_document
from autocompress.config.recipe_file import check_recipe, read_recipe
from autocompress.errors import ConfigurationError
from autocompress.evaluation.latency import Latency
from autocompress.methods.plan import Plan
from autocompress.search.evaluator import Evaluator
from autocompress.search.proposer import PREDICTED, Proposer
from autocompress.search.reach import check_reachable
from autocompress.search.rounds import measure_menu
from autocompress.search.space import Space
from autocompress.units import Budget, Limits

RecipeSource = str | Path | Mapping[str, Any] | Plan
_UNTIMED = Latency(math.nan, math.nan)  # nothing here is chosen by latency


class Target(Protocol):
    """What to compress to."""

    @property
    def label(self) -> str:
        """Say what it is, for the report."""

    def plan_for(self, session: Session) -> Plan:
        """Make the plan for a model."""


@dataclass(frozen=True)
class RecipeTarget:
    """A finished plan.

    Attributes:
        label: see ``Target``.
        plan: the plan as it was given.
        document: the file that it was read from, for messages.
        penalised: whether the file has penalties, which count when a plan is healed.
    """

    label: str
    plan: Plan
    document: Document
    penalised: bool = False

    @classmethod
    def of(cls, label: str, document: Document) -> RecipeTarget:
        """Read a file; see ``read_recipe``."""
        recipe = read_recipe(document)
        return cls(label, recipe.plan, document, bool(recipe.penalties))

    def plan_for(self, session: Session) -> Plan:
        """Fit the plan to a model; modes that miss a matrix become the nearest that fit.

        Raises:
            RecipeFileError: it belongs to another model.
        """
        checked = check_recipe(
            self.plan, session.workbench.inventory.layers, document=self.document
        )
        for notice in checked.notices:
            session.progress.note(notice)
        if self.penalised:
            session.progress.note(
                "The penalty: entries of the recipe do nothing here: they count when what is "
                "written is healed, with autocompress heal FOLDER --penalty RECIPE."
            )
        return checked.plan


@dataclass(frozen=True)
class BudgetTarget:
    """A limit of bytes, met by one exact allocation.

    Attributes:
        label: see ``Target``.
        budget: the limit.
        space: the options to choose from.
    """

    label: str
    budget: Budget
    space: Space

    def plan_for(self, session: Session) -> Plan:
        """Allocate on predicted damages, then on measured ones, as a search does at its start.

        Of these plans the one that diverges least from the dense model on the calibration text is
        taken.

        Raises:
            BudgetUnreachable: no plan can be as small; said before anything is computed.
        """
        inventory = session.workbench.inventory
        self.space.check(inventory.layers)
        limit = self.budget.limits(inventory.dense_bytes, 1.0).memory_bytes
        check_reachable(self.space, inventory, limit)
        menu = session.menu(self.space)
        limits = Limits(inventory.dense_bytes if limit is None else limit, None)
        proposer = Proposer(menu, inventory, limits, tied_names(self.space, inventory))
        if not session.settings.swap_tokens:
            return proposer.background(PREDICTED)
        text = session.scored_text("calibration", session.settings.swap_tokens)
        evaluator = Evaluator(session.workbench, session.build, _UNTIMED)
        return measure_menu(
            proposer, evaluator, text, session.cache, session.builder.key, session.progress
        )


def read_target(recipe: RecipeSource | None, budget: str | None, space: str) -> Target:
    """Read what to compress to, before any work is done.

    Args:
        recipe: a file, its content as a mapping, or a plan.
        budget: most bytes of the stored model.
        space: what may be chosen from under a budget, by name or file.

    Raises:
        ConfigurationError: both of recipe and budget or neither, or one that cannot be read.
    """
    if (recipe is None) == (budget is None):
        raise ConfigurationError(
            "what to compress to is not clear",
            got="neither a recipe nor a budget" if budget is None else "a recipe and a budget",
            wanted="one of them",
            hint="Give a recipe (a file, a mapping, a Plan), or a budget such as 4x.",
        )
    if budget is not None:
        return BudgetTarget(f"at most {budget}", Budget.parse(budget), read_space(space))
    if isinstance(recipe, Plan):
        return RecipeTarget(f"plan {recipe.hash}", recipe, Document(Path("plan")))
    if isinstance(recipe, Mapping):
        document = Document(Path("mapping"), dict(recipe))
        return RecipeTarget.of("by a recipe", document)
    if isinstance(recipe, str | Path):
        document = read_document(Path(recipe).expanduser())
        return RecipeTarget.of(f"recipe {recipe}", document)
    raise ConfigurationError(
        "the recipe is nothing that can be read",
        got=type(recipe).__name__,
        wanted="the path of a YAML file, a mapping like its content, or a Plan",
    )
