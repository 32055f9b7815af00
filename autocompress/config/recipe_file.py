"""Recipes: plans as YAML, with the model that they were made for and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from autocompress.atomic_write import written_whole
from autocompress.config.document import Document, read_document
from autocompress.config.method_entry import read_method
from autocompress.config.penalty_entries import PenaltyKeys, penalty_entries, read_penalties
from autocompress.config.problems import Problem, RecipeFileError, nearest_name, shown
from autocompress.config.schema import Strict, check, one_of
from autocompress.errors import MethodError, StorageError
from autocompress.healing.penalties import Penalty
from autocompress.methods.base import Method, repair_notice
from autocompress.methods.plan import RECIPE_VERSION, Plan
from autocompress.records import LayerSpec


class _RecipeKeys(Strict):
    """A whole file; the layers are read as method entries afterwards."""

    version: Annotated[int, one_of(RECIPE_VERSION)]
    model: str | None = None
    fingerprint: str | None = None
    measurement: dict[str, Any] | None = None
    layers: dict[str, Any] = Field(min_length=1)
    penalty: list[PenaltyKeys] = Field(default=[])


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        plan: which method stores which layer.
        model: the model that it was made for, if stated.
        fingerprint: hash of that model's weights, if stated.
        measurement: what was measured there, if stated.
        penalties: what is asked of the ranks when the plan is healed.
        document: the file.
    """

    plan: Plan
    model: str | None
    fingerprint: str | None
    measurement: Mapping[str, Any] | None = field(hash=False)
    penalties: tuple[Penalty, ...]
    document: Document = field(compare=False, repr=False)


@dataclass(frozen=True)
class CheckedRecipe:
    """A plan that fits a model, and what had to be corrected for that."""

    plan: Plan
    notices: tuple[str, ...]


def load_recipe(path: str | Path) -> Plan:
    """Read the plan of a recipe file.

    Raises:
        ConfigurationError: the file is missing or unreadable.
        RecipeFileError: it has errors; the message lists all of them.
    """
    return read_recipe(read_document(Path(path).expanduser())).plan


def read_recipe(document: Document) -> Recipe:
    """Turn a file into a recipe.

    Raises:
        RecipeFileError: it has errors; the message lists all of them.
    """
    data = document.data
    if not isinstance(data, dict):
        problem = document.problem((), shown(data), "a mapping with the keys version and layers")
        raise RecipeFileError(f"recipe {document.path}", [*document.problems, problem])
    keys = check(_RecipeKeys, data, document)
    layers = data.get("layers")
    methods = {
        name: read_method(entry, document, ("layers", name))
        for name, entry in (layers.items() if isinstance(layers, dict) else ())
    }
    known = {name: method for name, method in methods.items() if method is not None}
    penalties: tuple[Penalty, ...] = ()
    if keys is not None and len(known) == len(methods):
        penalties = read_penalties(keys.penalty, known, document)
    if document.problems or keys is None:
        raise RecipeFileError(f"recipe {document.path}", document.problems)
    return Recipe(
        Plan.of(known), keys.model, keys.fingerprint, keys.measurement, penalties, document
    )


def check_recipe(
    plan: Plan, layers: Sequence[LayerSpec], *, document: Document | None = None
) -> CheckedRecipe:
    """Make sure that a plan fits a model; modes and ranks that miss a matrix become the nearest.

    Args:
        plan: the plan.
        layers: the compressible matrices of the model.
        document: the file that the plan was read from, for the lines in messages.

    Raises:
        RecipeFileError: layers that the model lacks, methods that do not fit; the message lists all
            of them.
    """
    document = document or Document(Path("recipe"))
    specs = {spec.name: spec for spec in layers}
    methods: dict[str, Method] = {}
    notices: list[str] = []
    problems: list[Problem] = []
    for name, wanted in plan.methods:
        if name not in specs:
            problems.append(_unknown_layer(name, layers, document))
            continue
        method = wanted.fitting(specs[name])
        if method != wanted:
            notices.append(f"layer {specs[name]}: {repair_notice(wanted, method)}")
        try:
            method.check(specs[name])
        except MethodError as error:
            got = f"{method} for {specs[name]}"
            problems.append(document.problem(("layers", name), got, _allowed(error)))
        methods[name] = method
    if problems:
        raise RecipeFileError(f"recipe {document.path} does not fit this model; it", problems)
    return CheckedRecipe(Plan.of(methods), tuple(notices))


def rank_notices(plan: Plan) -> tuple[str, ...]:
    """What will be lowered for any model: ranks that the modes beside them do not allow."""
    return tuple(
        f"layer {name}: {repair_notice(method, method.feasible())}"
        for name, method in plan.methods
        if method.feasible() != method
    )


def save_recipe(
    plan: Plan,
    path: str | Path,
    *,
    model: str | None = None,
    fingerprint: str | None = None,
    measurement: Mapping[str, Any] | None = None,
    penalties: Sequence[Penalty] = (),
) -> None:
    """Write a plan as a recipe file, in one step: a reader never sees half of it.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    recipe = plan.to_recipe()
    header = {
        "model": model,
        "fingerprint": fingerprint,
        "measurement": dict(measurement) if measurement else None,
        "penalty": penalty_entries(penalties),
    }
    content = (
        {"version": recipe.pop("version")}
        | {key: value for key, value in header.items() if value}
        | recipe
    )
    _write_whole(
        Path(path),
        yaml.safe_dump(
            content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
        ),
    )


def _write_whole(path: Path, text: str) -> None:
    try:
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"recipe {path} cannot be written",
            got=error.strerror or str(error),
            hint="Free some space, or choose another folder.",
        ) from error


def _allowed(error: MethodError) -> str:
    """What an error about a layer wants, and of what: ``at most 64 (rank)``."""
    about = error.what.rpartition(": ")[2]
    return f"{error.wanted} ({about})" if error.wanted else error.what


def _unknown_layer(name: str, layers: Sequence[LayerSpec], document: Document) -> Problem:
    owner = next((spec.name for spec in layers if name in spec.tied), None)
    if owner is not None:
        allowed, nearest = f"{owner}, the matrix that it is tied to", owner
    else:
        allowed, nearest = (
            f"one of the {len(layers)} matrices of the model",
            nearest_name(name, [spec.name for spec in layers]),
        )
    return document.problem(("layers", name), "a layer that the model lacks", allowed, nearest)
