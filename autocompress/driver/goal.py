"""What to compress a model to: a recipe, or what exact allocations give at a budget or quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from autocompress.calibration.screening import describe_fits
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.proposing.reach import check_reachable
from autocompress.driver.quality_goal import Chosen, Confirm, QualityGoal
from autocompress.driver.rounds import price_menu
from autocompress.errors import ConfigurationError
from autocompress.methods.keep import Keep
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.progress import Progress
from autocompress.requests.groups import KEEP
from autocompress.requests.verbs import CompressRequest
from autocompress.session.left_dense import refused_of, warn_of_unreached, within_reach
from autocompress.session.session import Session, grouped_names, space_of
from autocompress.space.document import Document, read_document
from autocompress.space.penalty_entries import penalties_that_count
from autocompress.space.recipe_file import Recipe, check_recipe, own_space, read_recipe
from autocompress.space.selection import EVERYTHING, Selection
from autocompress.space.space import Space
from autocompress.units import Budget, Limits

BESIDE_THE_BUDGET = 1  # sizes that options are fitted at beside it, so that there are more to price

RecipeSource = str | Path | Mapping[str, Any] | Plan


class Goal(Protocol):
    """What to compress to."""

    @property
    def label(self) -> str:
        """Say what it is, for the report."""

    @property
    def seed(self) -> int:
        """Of what is drawn, where nobody says another."""

    def choose(self, session: Session, confirm: Confirm) -> Chosen:
        """Make the plan for a model."""

    def penalties_of(self, plan: Plan, progress: Progress) -> tuple[Penalty, ...]:
        """What is asked of the ranks when the plan is healed."""


@dataclass(frozen=True)
class RecipeGoal:
    """A recipe: a finished plan, or a part of one that is completed within a budget.

    Attributes:
        label: see ``Goal``.
        recipe: the recipe as it was given.
        request: how to choose what layers take that the recipe leaves open.
        budget: what the whole model may take. Without it, these layers stay dense.
        space: what these may take under a budget.
    """

    label: str
    recipe: Recipe
    request: CompressRequest
    budget: Budget | None = None
    space: Space | None = None

    @property
    def seed(self) -> int:
        """The recipe's own, or 0."""
        return self.recipe.seed or 0

    def choose(self, session: Session, confirm: Confirm | None = None) -> Chosen:
        """Fit the recipe to a model; modes that miss a matrix become the nearest that fit.

        Raises:
            RecipeFileError: it belongs to another model.
            MethodError: the session's target does not open it.
            BudgetUnreachable: no plan that keeps to the recipe can be as small as the budget.
        """
        checked = check_recipe(self.recipe, session.workbench.inventory.layers)
        for notice in checked.notices:
            session.progress.note(notice)
        plan = _settled(session, checked.plan)
        if self.recipe.in_targets:
            session.progress.note(
                "The recipe is in QCompress's words: autocompress validate prints it in ours."
            )
        drawn = [method for method in plan.values() if method.is_drawn]
        if drawn:
            session.progress.note(
                f"{len(drawn)} tensor trains start from random cores: the model is of use only "
                "when it has been trained, with autocompress heal FOLDER --out NEW_FOLDER."
            )
        if self.budget is None or self.space is None:
            compressed = [name for name, method in plan.items() if method != Keep()]
            warn_of_unreached(session, compressed, self.label)
            session.target.check(plan, session.workbench.inventory.layers)
            return Chosen(plan)
        space = self.space.pinned(plan)
        # Beside untrained layers nothing can be priced.
        completed = BudgetGoal(self.label, self.budget, space, self.request, priced=not drawn)
        return completed.choose(session, confirm)

    def penalties_of(self, plan: Plan, progress: Progress) -> tuple[Penalty, ...]:
        """The recipe's penalties that count for a plan, which go with what is written."""
        counting = penalties_that_count(self.recipe.penalties, plan)
        for penalty in self.recipe.penalties:
            if penalty not in counting:
                progress.note(
                    f"The penalty {penalty} is left out: no layer that it is for has ranks."
                )
        if counting:
            progress.note(
                f"The recipe's penalty, {', '.join(map(str, counting))}, is written with it and "
                "holds when it is healed."
            )
        return counting


def _settled(session: Session, plan: Plan) -> Plan:
    """The plan with the ranks that tolerances ask of the matrices, each with a note."""
    methods = dict(plan)
    for name, method in plan.items():
        if method.is_open:
            methods[name] = method.settled(session.builder.problem(name))
            session.progress.note(f"layer {name}: {method} is {methods[name]}")
    return Plan.of(methods)


@dataclass(frozen=True)
class BudgetGoal:
    """A limit of bytes, met by one exact allocation.

    Attributes:
        label: see ``Goal``.
        budget: the limit.
        space: the options to choose from.
        request: how to choose.
        priced: whether options are priced inside a compressed model, beside predictions.
        seed: see ``Goal``.
    """

    label: str
    budget: Budget
    space: Space
    request: CompressRequest
    priced: bool = True
    seed: int = 0

    def choose(self, session: Session, confirm: Confirm | None = None) -> Chosen:  # noqa: ARG002
        """Allocate on predicted loss increases, then on prices, as a search does at its start.

        Of these plans the one that diverges least from the dense model on the calibration text is
        taken.

        Raises:
            BudgetUnreachable: no plan can be as small; said before anything is computed.
        """
        inventory = session.workbench.inventory
        self.space.check(inventory.layers)
        limits = self.budget.limits(inventory.dense_bytes, 1.0)
        limit = limits.memory_bytes
        space = within_reach(session, self.space, self.request.unreached)
        check_reachable(space, inventory, limit)
        level = self.request.level
        menu = session.menu(space, samples=level.samples_for_a_plan, fit_all=self.request.fit_all)
        most = Limits(inventory.dense_bytes if limit is None else limit, None)
        groups = grouped_names(space, inventory)
        proposer = Proposer(menu, inventory, most, groups, fit=session.fit_taken)
        refused = refused_of(space, inventory.layers)
        if not (self.priced and session.tokens.pricing):
            return Chosen(proposer.background(PREDICTED), limits, refused=refused)
        proposer.settled(PREDICTED, *proposer.targets[: 1 + BESIDE_THE_BUDGET])
        texts = session.pricing_texts
        plan = price_menu(proposer, session.builder, texts, session.progress, rounds=level.rounds)
        session.progress.note(describe_fits(proposer.menu))
        return Chosen(plan, limits, refused=refused)

    def penalties_of(self, plan: Plan, progress: Progress) -> tuple[Penalty, ...]:  # noqa: ARG002 - a budget asks nothing of ranks
        """Nothing."""
        return ()


def read_goal(request: CompressRequest) -> Goal:
    """Read what to compress to, before any work is done.

    Raises:
        ConfigurationError: no recipe, budget or quality, a quality beside a recipe, a space or a
            selection where nothing is chosen, or one that cannot be read.
    """
    recipe, budget, quality = request.recipe, request.budget, request.quality
    if quality is not None:
        if recipe is not None:
            raise ConfigurationError(
                "what to compress to is not clear",
                got="a recipe and a quality",
                wanted="one of them",
                hint="A recipe says the form of each layer; leave it out to have them chosen.",
            )
        words = f"quality {quality}" + ("" if budget is None else f", at most {budget}")
        return QualityGoal(words, Budget.parse(budget, None, quality), space_of(request), request)
    if recipe is None:
        if budget is None:
            raise ConfigurationError(
                "what to compress to is not clear",
                got="neither a recipe, a budget nor a quality",
                wanted="one of them",
                hint="Give a recipe (a file, a mapping, a Plan), a budget such as 4x, or a quality "
                "such as 5%.",
            )
        return BudgetGoal(f"at most {budget}", Budget.parse(budget), space_of(request), request)
    label, read = _read_recipe(recipe, budget, request.seed)
    if read.budget is None:
        _refuse_choices(request, read)
        return RecipeGoal(label, read, request)
    label = f"{label}, completed to at most {read.budget}"
    space = space_of(replace(request, space=request.space or own_space(read)))
    return RecipeGoal(label, read, request, Budget.parse(read.budget), space)


def _refuse_choices(request: CompressRequest, recipe: Recipe) -> None:
    """Refuse what narrows choices, where a recipe leaves none."""
    selection = Selection.of(request.methods, request.layers, request.keep)
    if selection != EVERYTHING:
        raise ConfigurationError(
            "a recipe without a budget says itself which matrices take what",
            got=" and ".join(f"--{name}" for name in selection.to_dict()),
            hint="Leave that out, or give a --budget for the layers that the recipe leaves open.",
        )
    space = request.space or recipe.space
    if space is not None:
        raise ConfigurationError(
            "a space has no effect beside a recipe without a budget",
            got=space,
            wanted="a budget for the layers that the recipe leaves open, such as 4x",
            hint="Give --budget, write budget: into the recipe, or leave the space out.",
        )
    if request.unreached != KEEP:
        raise ConfigurationError(
            "--unreached has no effect beside a recipe without a budget",
            got=request.unreached,
            hint="Leave it out, and name those matrices in the recipe.",
        )
    if request.fit_all:
        raise ConfigurationError(
            "--fit-all has no effect beside a recipe without a budget",
            hint="Leave it out: the layers that the recipe names are fitted as it says.",
        )


def _read_recipe(recipe: RecipeSource, budget: str | None, seed: int | None) -> tuple[str, Recipe]:
    """What to call a recipe, and the recipe."""
    if isinstance(recipe, Plan):
        document = Document(Path("plan"))
        return f"plan {recipe.hash}", Recipe(recipe, budget=budget, document=document)
    if isinstance(recipe, Mapping):
        document = Document(Path("mapping"), dict(recipe))
        return "by a recipe", read_recipe(document, budget=budget, seed=seed)
    if isinstance(recipe, str | Path):
        document = read_document(Path(recipe).expanduser())
        return f"recipe {recipe}", read_recipe(document, budget=budget, seed=seed)
    raise ConfigurationError(
        "the recipe is nothing that can be read",
        got=type(recipe).__name__,
        wanted="the path of a YAML file, a mapping like its content, or a Plan",
    )
