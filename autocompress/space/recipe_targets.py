"""Recipes in QCompress's words: ``targets: [{path, decomp, in_modes, out_modes, ranks, ...}]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from autocompress.methods.base import Method
from autocompress.methods.cp import Cp
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.document import Document, Path_
from autocompress.space.method_entry import read_method
from autocompress.space.penalty_entries import PenaltyKeys
from autocompress.space.problems import shown
from autocompress.space.schema import Strict, check

KEY = "targets"
NAMES: dict[str, type[Method]] = {"TT": TensorTrain, "Tucker": Tucker, "CP": Cp, "SVD": Svd}
_BY_NAME = {name.lower(): kind for name, kind in NAMES.items()} | {
    kind.name: kind for kind in NAMES.values()
}


def _kind(value: object) -> object:
    kind = _BY_NAME.get(value.lower()) if isinstance(value, str) else None
    if kind is None:
        raise PydanticCustomError("literal_error", "{expected}", {"expected": ", ".join(NAMES)})
    return kind


def _penalty(value: object) -> object:
    """A kind by its name is a penalty of that kind."""
    if isinstance(value, str):
        return None if value.lower() == "none" else {"kind": value}
    return value


class _TargetKeys(Strict):
    """One entry of ``targets``."""

    path: Annotated[str, Field(min_length=1)]
    decomp: Annotated[Any, BeforeValidator(_kind)]
    in_modes: list[int] | None = None
    out_modes: list[int] | None = None
    ranks: int | list[int]
    init: str | None = None
    penalty: Annotated[PenaltyKeys | None, BeforeValidator(_penalty)] = None


@dataclass
class Targets:
    """What targets come to in the words of a recipe.

    Attributes:
        layers: method by path, in the order of the file.
        penalties: entries, each with the path of its target.
        places: where the file has the method of each path, for messages.
    """

    layers: dict[str, Method] = field(default_factory=dict)
    penalties: list[PenaltyKeys] = field(default_factory=list)
    places: dict[str, Path_] = field(default_factory=dict)


def read_targets(entries: object, document: Document) -> Targets:
    """Turn targets into methods by path; what cannot be is noted in the document, all at once."""
    found = Targets()
    if not isinstance(entries, list) or not entries:
        document.problems.append(
            document.problem((KEY,), shown(entries), "a list such as [{path: ..., decomp: TT}]")
        )
        return found
    for index, entry in enumerate(entries):
        at = (KEY, index)
        keys = check(_TargetKeys, entry, document, at)
        if keys is None:
            continue
        if keys.path in found.places:
            document.problems.append(
                document.problem((*at, "path"), "the same path again", "each path once")
            )
            continue
        found.places[keys.path] = (*at, "path")
        words = _in_our_words(keys, document, at)
        method = read_method(words, document, at) if words is not None else None
        if method is not None:
            found.layers[keys.path] = method
            if keys.penalty is not None:
                found.penalties.append(keys.penalty.model_copy(update={"layers": keys.path}))
    return found


def _in_our_words(keys: _TargetKeys, document: Document, at: Path_) -> Mapping[str, Any] | None:
    """The entry as a recipe has it, or ``None`` with the reasons noted."""
    kind: type[Method] = keys.decomp
    modes = {"out_modes": keys.out_modes, "in_modes": keys.in_modes}
    given = {side: value for side, value in modes.items() if value is not None}
    before = len(document.problems)
    for side in modes:
        if (kind is Svd) == (side in given):
            got = shown(given.get(side))
            allowed = "no modes for SVD" if kind is Svd else "a list of modes, such as [8, 16]"
            document.problems.append(document.problem((*at, side), got, allowed))
    init = (keys.init or "svd").lower()
    if init not in ("svd", "random") or (init == "random" and kind is not TensorTrain):
        allowed = "svd, or random for TT" if init == "random" else "svd, random"
        document.problems.append(document.problem((*at, "init"), shown(keys.init), allowed))
    ranks: int | list[int] = keys.ranks
    if kind in (Cp, Svd) and isinstance(ranks, list):
        if len(ranks) != 1:
            document.problems.append(document.problem((*at, "ranks"), shown(ranks), "one rank"))
        ranks = ranks[0] if ranks else 0
    if len(document.problems) > before:
        return None
    if kind is TensorTrain and isinstance(ranks, list):
        cores = max(len(value) for value in given.values())
        if len(ranks) == cores + 1 and ranks[0] == ranks[-1] == 1:  # with those of the two ends
            ranks = ranks[1:-1]
    entry = {"method": kind.name, "rank" if kind in (Cp, Svd) else "ranks": ranks, **given}
    return entry | ({"init": init} if init == "random" else {})
