"""``autocompress validate``: every error of a space or recipe, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autocompress.cli.output import console, log, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.requests.verbs import ValidateRequest

if TYPE_CHECKING:
    from autocompress.methods.plan import Plan
    from autocompress.space.document import Document
    from autocompress.space.problems import Problem
    from autocompress.space.recipe_file import Recipe
    from autocompress.surgery.inventory import Inventory


@dataclass(frozen=True)
class FileVerdict:
    """What a file is, and what is wrong with it."""

    file: Path
    kind: str
    name: str
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    layers: int = 0
    options: int = 0
    recipe_yaml: str = ""  # of a recipe in other words than ours
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return {
            "file": str(self.file),
            "kind": self.kind,
            "name": self.name,
            "valid": not self.problems,
            "problems": [problem.to_dict() for problem in self.problems],
            "notices": list(self.notices),
            "layers": self.layers,
            "options": self.options,
        } | ({"recipe_yaml": self.recipe_yaml} if self.recipe_yaml else {})


@takes(ValidateRequest)
def validate(request: ValidateRequest, *, as_json: Json = False) -> None:
    r"""Check a search space or recipe and list every error: line, key, got, allowed, nearest name.

    \b
    autocompress validate my_space.yaml
    autocompress validate recipe.yaml --model ./my-model
    autocompress validate quantize_only --json

    A recipe says how layers are stored, by names or globs, of which the first that matches counts:

    \b
    version: 1
    budget: 4x            # of the whole model; layers not named share it (else they stay dense)
    space: quantize_only  # what these may take: one of the package, or a file beside the recipe
    seed: 1               # of the calibration and of random cores
    layers:
      "*.self_attn.[qk]_proj": {method: svd, rank: 32}
      "*.mlp.*": {method: tensor_train, ranks: 16, out_modes: [8, 8, 6], in_modes: [8, 16]}
      model.embed_tokens: {method: keep}
    penalty:              # obeyed when the model that was made of it is healed
      - {layers: "*.mlp.*", kind: renyi, alpha: 0.5, weight: 0.05}

    The shorter side of a tensor train is padded with modes of 1, one number for ranks stands at
    every bond, and with init: random its cores are drawn, to be trained. A recipe in the words of
    QCompress (targets: [{path, decomp, in_modes, out_modes, ranks, init, penalty}]) is read as
    well, and printed in these.

    Exits with 0 when the file is valid and with 2 when it is not.
    """
    verdict = judge(
        request.file,
        request.model,
        trust_remote_code=request.trust_remote_code,
        dequantize=request.dequantize,
    )
    if as_json:
        print_json(verdict.to_dict())
    else:
        _show(verdict)
    if verdict.problems:
        raise typer.Exit(2)


def judge(file: str, model: str | None = None, **loading: bool) -> FileVerdict:
    """Read a file as what it is and collect its problems, with those against a model if named.

    Args:
        file: a path, or the name of a search space of the package.
        model: folder or hub name.
        loading: how to load it, see ``load_model``.

    Raises:
        ConfigurationError: the file or model cannot be read at all.
    """
    from autocompress.space.document import read_document
    from autocompress.space.problems import FileError
    from autocompress.space.space_file import find_space

    path = find_space(file)
    try:
        document = read_document(path)
        is_recipe = isinstance(document.data, dict) and bool(
            {"layers", "targets"} & {*document.data}
        )
    except FileError as error:
        return FileVerdict(path, "unreadable", path.stem, error.problems)
    judge_it = _judge_recipe if is_recipe else _judge_space
    return judge_it(document, model, loading)


def _judge_space(document: Document, model: str | None, loading: Mapping[str, bool]) -> FileVerdict:
    from autocompress.space.problems import SpaceFileError
    from autocompress.space.space_file import option_problems, read_space, unmatched_rules

    try:
        space = read_space(document)
    except SpaceFileError as error:
        return FileVerdict(document.path, "search space", document.path.stem, error.problems)
    specs = _inventory(model, loading).layers
    unmatched, problems = unmatched_rules(space, specs), option_problems(space, specs, document)
    options = 0 if problems else sum(len(space.options(spec)) for spec in specs)
    notices = space.notices(specs)
    if model is not None:
        problems += unmatched
    else:  # its rules may well be meant for another model than the bundled one
        notices += tuple(
            f"line {p.line}: no layer of the bundled model has {p.got}; "
            "name your model with --model"
            for p in unmatched
        )
    return FileVerdict(
        document.path, "search space", space.name, problems, notices, len(specs), options
    )


def _judge_recipe(
    document: Document, model: str | None, loading: Mapping[str, bool]
) -> FileVerdict:
    from autocompress.methods.plan import Plan
    from autocompress.space.problems import RecipeFileError
    from autocompress.space.recipe_file import check_recipe, rank_notices, read_recipe

    try:
        recipe = read_recipe(document)
        notices: tuple[str, ...] = ()
        summary, count = Plan.of(recipe.layers).summary(), len(recipe.layers)
        if model is not None:
            inventory = _inventory(model, loading)
            checked = check_recipe(recipe, inventory.layers)
            notices, count = checked.notices, len(checked.plan)
            summary = checked.plan.summary()
            _check_space(recipe, checked.plan, inventory)
        else:
            notices = rank_notices(recipe.layers)
            _check_space(recipe)
    except RecipeFileError as error:
        return FileVerdict(
            document.path, "recipe", document.path.stem, error.problems, hint=error.hint
        )
    name = summary + (f", for {recipe.model}" if recipe.model else "")
    if recipe.budget:
        name += f"; all other matrices so that the model takes at most {recipe.budget}"
    if recipe.penalties:
        name += f"; healed with a penalty of {', '.join(map(str, recipe.penalties))}"
    ours = recipe.to_yaml() if recipe.in_targets else ""
    entries = len(recipe.layers)
    return FileVerdict(document.path, "recipe", name, (), notices, count, entries, recipe_yaml=ours)


def _check_space(
    recipe: Recipe, plan: Plan | None = None, inventory: Inventory | None = None
) -> None:
    """Make sure that the space and budget of a recipe hold, as far as they can be seen to.

    Raises:
        RecipeFileError: they do not.
    """
    from autocompress.driver.proposing.reach import check_reachable
    from autocompress.errors import BudgetUnreachable, ConfigurationError
    from autocompress.space.problems import RecipeFileError
    from autocompress.space.recipe_file import own_space
    from autocompress.space.space_file import DEFAULT_SPACE, load_space
    from autocompress.units import Budget

    document, key = recipe.document, "space"
    try:
        space = load_space(own_space(recipe) or DEFAULT_SPACE)
        if plan is not None and inventory is not None and recipe.budget is not None:
            # What a tolerance comes to is seen when it is fitted.
            space = space.pinned({name: m for name, m in plan.items() if not m.is_open})
            space.check(inventory.layers)
            key = "budget"
            dense = inventory.dense_bytes
            limit = Budget.parse(recipe.budget).limits(dense, 1.0).memory_bytes
            check_reachable(space, inventory, limit)
    except BudgetUnreachable as error:
        problem = document.problem((key,), str(error.got), error.wanted)
        raise RecipeFileError(f"recipe {document.path}", [problem]) from error
    except ConfigurationError as error:
        allowed = error.wanted or "a search space of the package, or a YAML file"
        problem = document.problem((key,), error.what, allowed)
        raise RecipeFileError(f"recipe {document.path}", [problem]) from error


def _inventory(model: str | None, loading: Mapping[str, Any]) -> Inventory:
    from autocompress.surgery.inventory import take_inventory
    from autocompress.surgery.loading import load_model

    loaded = load_model(model, **loading)
    return take_inventory(loaded.model, loaded.stored_types)


def _show(verdict: FileVerdict) -> None:
    for notice in verdict.notices:
        log.print(notice, markup=False, soft_wrap=True)
    if not verdict.problems:
        console.print(_summary(verdict), markup=False, soft_wrap=True)
        if verdict.recipe_yaml:
            console.print("The same recipe in our words:\n", markup=False)
            console.print(
                verdict.recipe_yaml, markup=False, highlight=False, soft_wrap=True, end=""
            )
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{verdict.kind} {verdict.file}: {len(verdict.problems)} to correct",
        title_justify="left",
    )
    for heading in ("line", "key", "got", "allowed", "nearest"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "line" else "left")
    for problem in verdict.problems:
        cells = (str(problem.line), problem.key, problem.got, problem.allowed, problem.nearest)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if verdict.hint:
        console.print(verdict.hint, markup=False, highlight=False, soft_wrap=True, end="")


def _summary(verdict: FileVerdict) -> str:
    if verdict.kind == "recipe":
        globs = "" if verdict.layers == verdict.options else f", by {verdict.options} entries"
        return (
            f"{verdict.file} is a valid recipe of {verdict.layers} layers{globs}: {verdict.name}."
        )
    mean = verdict.options / verdict.layers
    return (
        f"{verdict.file} is a valid search space, {verdict.name}: {verdict.options} options for "
        f"{verdict.layers} matrices, {mean:.0f} each on average."
    )
