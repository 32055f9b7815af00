"""Recipes: plans as YAML, with the model that they were made for and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from autocompress.atomic_write import written_whole
from autocompress.errors import ConfigurationError, MethodError, RecipeError, StorageError
from autocompress.methods.base import Method, repair_notice
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import RECIPE_VERSION, Plan
from autocompress.records import LayerSpec
from autocompress.space.document import Document, Path_, read_document
from autocompress.space.method_entry import read_method
from autocompress.space.penalty_entries import (
    PenaltyKeys,
    penalty_entries,
    penalty_problems,
    read_penalties,
)
from autocompress.space.problems import (
    Problem,
    RecipeFileError,
    nearest_glob,
    nearest_name,
    shown,
)
from autocompress.space.recipe_targets import KEY as TARGETS
from autocompress.space.recipe_targets import read_targets
from autocompress.space.schema import Strict, check, one_of
from autocompress.space.space_file import space_names
from autocompress.units import MEMORY_FORMS, Budget


def _nowhere() -> Document:
    """What stands for the file of a plan that was read from none."""
    return Document(Path("recipe"))


def _budget(value: object) -> object:
    try:
        Budget.parse(value if isinstance(value, str) else shown(value))
    except ConfigurationError as error:
        raise ValueError(error.wanted or MEMORY_FORMS) from error
    return value


class _RecipeKeys(Strict):
    """A whole file; the layers are read as method entries afterwards."""

    version: Annotated[int, one_of(RECIPE_VERSION)]
    model: str | None = None
    fingerprint: str | None = None
    measurement: dict[str, Any] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    budget: Annotated[str, BeforeValidator(_budget)] | None = None
    space: Annotated[str, Field(min_length=1)] | None = None
    packages: dict[str, str] | None = None
    layers: dict[str, Any] = Field(min_length=1)
    penalty: list[PenaltyKeys] = Field(default=[])


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        layers: which method stores which layer: by names, or shell globs over them in which ``*``
            also runs over dots. The first that matches a layer counts there.
        model: the model that it was made for, if stated.
        fingerprint: hash of that model's weights, if stated.
        measurement: what was measured there, if stated.
        penalties: what is asked of the ranks when the plan is healed.
        seed: of what is drawn when it is carried out, if stated.
        budget: most bytes of the whole model, which the layers that it leaves open have to meet.
        space: what these may take: a search space by name, or a YAML file.
        document: the file.
        places: where the file has the method of each of the layers.
    """

    layers: Mapping[str, Method] = field(hash=False)
    model: str | None = None
    fingerprint: str | None = None
    measurement: Mapping[str, Any] | None = field(default=None, hash=False)
    penalties: tuple[Penalty, ...] = ()
    seed: int | None = None
    budget: str | None = None
    space: str | None = None
    document: Document = field(default_factory=_nowhere, compare=False, repr=False)
    places: Mapping[str, Path_] = field(default_factory=dict, compare=False, repr=False)

    @property
    def plan(self) -> Plan:
        """The plan, of a recipe that names every layer in full.

        Raises:
            RecipeError: globs, of which only a model says what they match.
        """
        globs = [name for name in self.layers if is_glob(name)]
        if globs:
            raise RecipeError(
                f"recipe {self.document.path} has globs, which only a model can resolve",
                got=globs[0],
                wanted="names of layers",
            )
        return Plan.of(self.layers)

    @property
    def in_targets(self) -> bool:
        """Whether it is in QCompress's words."""
        return any(place[:1] == (TARGETS,) for place in self.places.values())

    def to_yaml(self) -> str:
        """The same recipe in the words of this package, to be pasted into a file."""
        header = {"model": self.model, "seed": self.seed, "budget": self.budget}
        return _yaml(Plan.of(self.layers), header | {"space": self.space}, self.penalties)


@dataclass(frozen=True)
class CheckedRecipe:
    """A plan that fits a model, and what had to be corrected for that."""

    plan: Plan
    notices: tuple[str, ...]


def load_recipe(path: str | Path) -> Plan:
    """Read the plan of a recipe file that names every layer in full.

    Raises:
        ConfigurationError: the file is missing or unreadable.
        RecipeError: it has errors, of which the message lists all, or globs.
    """
    return read_recipe(read_document(Path(path).expanduser())).plan


def read_recipe(
    document: Document, *, budget: str | None = None, seed: int | None = None
) -> Recipe:
    """Turn a file into a recipe.

    Args:
        document: the file.
        budget: instead of the file's own.
        seed: likewise.

    Raises:
        RecipeFileError: it has errors; the message lists all of them.
    """
    data = document.data
    if not isinstance(data, dict):
        problem = document.problem((), shown(data), "a mapping with the keys version and layers")
        raise _broken(document, [*document.problems, problem])
    if TARGETS in data and "layers" in data:
        problem = document.problem((TARGETS,), "layers as well", "either layers or targets")
        raise _broken(document, [*document.problems, problem])
    if TARGETS in data:
        return _read_with_targets(data, document, budget, seed)
    keys = check(_RecipeKeys, data, document)
    entries = data.get("layers")
    entries = entries if isinstance(entries, dict) else {}
    places: dict[str, Path_] = {name: ("layers", name) for name in entries}
    methods = {name: read_method(entry, document, places[name]) for name, entry in entries.items()}
    known = {name: method for name, method in methods.items() if method is not None}
    penalties: tuple[Penalty, ...] = ()
    if keys is not None and len(known) == len(methods):
        penalties = read_penalties(keys.penalty, document)
        if (budget or keys.budget) is None and not any(map(is_glob, known)):
            document.problems += penalty_problems(penalties, known, document)
    if document.problems or keys is None:
        raise _broken(document, document.problems)
    seed = keys.seed if seed is None else seed
    seeded = {name: entry for name, entry in entries.items() if "seed" in entry}
    layers = {n: m if n in seeded else m.seeded(seed) for n, m in known.items()}
    return _recipe_of(keys, layers, penalties, seed, budget, document, places)


def _read_with_targets(
    data: dict[str, Any], document: Document, budget: str | None, seed: int | None
) -> Recipe:
    """Turn a file in QCompress's words into a recipe.

    Raises:
        RecipeFileError: it has errors; below all of them stands in our words what was understood.
    """
    rest = {key: value for key, value in data.items() if key != TARGETS}
    keys = check(
        _RecipeKeys, {"version": RECIPE_VERSION} | rest | {"layers": {"*": None}}, document
    )
    found = read_targets(data[TARGETS], document)
    penalties: tuple[Penalty, ...] = ()
    if keys is not None:
        penalties = read_penalties([*found.penalties, *keys.penalty], document)
        seed = keys.seed if seed is None else seed
    layers = {name: method.seeded(seed) for name, method in found.layers.items()}
    if document.problems or keys is None:
        understood = _yaml(Plan.of(layers), {}, penalties) if layers else ""
        hint = "The other targets in the words of a recipe:\n" + understood if understood else ""
        raise RecipeFileError(f"recipe {document.path}", document.problems, hint=hint)
    return _recipe_of(keys, layers, penalties, seed, budget, document, found.places)


def _recipe_of(
    keys: _RecipeKeys,
    layers: Mapping[str, Method],
    penalties: tuple[Penalty, ...],
    seed: int | None,
    budget: str | None,
    document: Document,
    places: Mapping[str, Path_],
) -> Recipe:
    return Recipe(
        layers,
        keys.model,
        keys.fingerprint,
        keys.measurement,
        penalties,
        seed,
        budget or keys.budget,
        keys.space,
        document,
        places,
    )


def _broken(document: Document, problems: Sequence[Problem]) -> RecipeFileError:
    return RecipeFileError(f"recipe {document.path}", problems)


def own_space(recipe: Recipe) -> str | None:
    """The space that a recipe names: one of the package, or a file, seen from the recipe's."""
    if recipe.space is None or recipe.space in space_names():
        return recipe.space
    return str(recipe.document.path.parent / Path(recipe.space).expanduser())


def is_glob(name: str) -> bool:
    """Whether an entry of ``layers`` is a pattern; no name of a layer has these characters."""
    return any(character in name for character in "*?[")


def check_recipe(
    recipe: Recipe | Plan, layers: Sequence[LayerSpec], *, document: Document | None = None
) -> CheckedRecipe:
    """Find what a recipe says of a model; modes and ranks that miss a matrix become the nearest.

    Args:
        recipe: a recipe or a plan.
        layers: the compressible matrices of the model.
        document: the file that a plan was read from, for the lines in messages.

    Returns:
        The plan in the order of the model. Layers that the recipe leaves open are not in it.

    Raises:
        RecipeFileError: names and globs that match nothing, methods that do not fit, penalties that
            count nowhere; the message lists all of them.
    """
    if isinstance(recipe, Plan):
        recipe = Recipe(recipe, document=document or _nowhere())
    document = recipe.document
    matched = _first_matches(list(recipe.layers), layers)
    methods: dict[str, Method] = {}
    notices: list[str] = []
    problems: list[Problem] = []
    misfits: dict[str, list[tuple[str, str]]] = {}
    used = set(matched.values())
    problems += [_unmatched(entry, recipe, layers) for entry in recipe.layers if entry not in used]
    for spec in layers:
        entry = matched.get(spec.name)
        if entry is None:
            continue
        wanted = recipe.layers[entry]
        method = wanted.fitting(spec)
        if method != wanted:
            notices.append(f"layer {spec}: {repair_notice(wanted, method)}")
        try:
            method.check(spec)
        except MethodError as error:
            misfits.setdefault(entry, []).append((f"{method} for {spec}", _allowed(error)))
        methods[spec.name] = method
    for entry, found in misfits.items():
        got, allowed = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        problems.append(document.problem(_place(recipe, entry), got + more, allowed))
    if recipe.budget is None and not problems:
        problems += penalty_problems(recipe.penalties, methods, document)
    if problems:
        raise RecipeFileError(f"recipe {document.path} does not fit this model; it", problems)
    return CheckedRecipe(Plan.of(methods), tuple(notices))


def rank_notices(layers: Mapping[str, Method]) -> tuple[str, ...]:
    """What will be lowered for any model: ranks that the modes beside them do not allow."""
    return tuple(
        f"layer {name}: {repair_notice(method, method.feasible())}"
        for name, method in layers.items()
        if method.feasible() != method
    )


def _first_matches(entries: Sequence[str], layers: Sequence[LayerSpec]) -> dict[str, str]:
    """By layer, the first name or glob that matches it."""
    order = {entry: index for index, entry in enumerate(entries)}
    globs = [entry for entry in entries if is_glob(entry)]
    found = {}
    for spec in layers:
        fitting = [glob for glob in globs if fnmatchcase(spec.name, glob)]
        fitting += [spec.name] if spec.name in order else []
        if fitting:
            found[spec.name] = min(fitting, key=order.__getitem__)
    return found


def _place(recipe: Recipe, entry: str) -> Path_:
    return recipe.places.get(entry, ("layers", entry))


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
    header = {
        "model": model,
        "fingerprint": fingerprint,
        "measurement": dict(measurement) if measurement else None,
    }
    _write_whole(Path(path), _yaml(plan, header, penalties))


def _yaml(plan: Plan, header: Mapping[str, Any], penalties: Sequence[Penalty]) -> str:
    """A recipe as text; what the header has no value for is left out."""
    recipe = plan.to_recipe()
    head = {key: value for key, value in header.items() if value not in (None, {})}
    asked = {"penalty": penalty_entries(penalties)} if penalties else {}
    content = {"version": recipe.pop("version")} | head | asked | recipe
    return yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
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


def _unmatched(entry: str, recipe: Recipe, layers: Sequence[LayerSpec]) -> Problem:
    """Why a name or glob is the first for no layer."""
    names = [spec.name for spec in layers]
    got = "a glob that matches no layer" if is_glob(entry) else "a layer that the model lacks"
    allowed = f"one of the {len(names)} matrices of the model"
    owner = next((spec.name for spec in layers if entry in spec.tied), None)
    if owner is not None:
        allowed, nearest = f"{owner}, the matrix that it is tied to", owner
    elif any(fnmatchcase(name, entry) for name in names):
        got = "only layers that entries before it match"
        allowed, nearest = "a layer that is left; the first entry that matches counts", ""
    else:
        nearest = nearest_glob(entry, names) if is_glob(entry) else nearest_name(entry, names)
    return recipe.document.problem(_place(recipe, entry), got, allowed, nearest)
