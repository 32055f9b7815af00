"""The menu of a study in its run folder, so that a new budget needs neither the model nor a fit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocompress.atomic_write import written_whole
from autocompress.calibration.menu import LayerMenu, Menu, Option, State
from autocompress.calibration.priced_menu import Price, PricedMenu
from autocompress.errors import StorageError, StudyError
from autocompress.methods.file_size import Entry
from autocompress.methods.registry import method_from_dict
from autocompress.methods.target import Target
from autocompress.studies.study import StudyRecord
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.native import NATIVE

MENU = "menu.json"
MENU_VERSION = 4


@dataclass(frozen=True)
class StoredMenu:
    """What plans are made of.

    Attributes:
        menu: options of every layer.
        inventory: the model's matrices.
        groups: layers that take the same method.
        priced: what options cost inside a compressed model.
    """

    menu: Menu
    inventory: Inventory
    groups: tuple[tuple[str, ...], ...] = ()
    priced: PricedMenu = field(default_factory=PricedMenu)


def keep_menu(folder: Path, stored: StoredMenu) -> Path:
    """Write what plans are made of into the run folder."""
    options = {
        layer.spec.name: [
            {**asdict(option), "method": option.method.to_dict()} for option in layer.options
        ]
        for layer in stored.menu.layers
    }
    content = {
        "version": MENU_VERSION,
        "rest_bytes": stored.inventory.rest_bytes,
        "tensors": stored.inventory.tensors,
        "places": stored.inventory.places,
        "groups": stored.groups,
        "prices": stored.priced.by_layer,
        "layers": options,
    }
    path = folder / MENU
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content))
    except OSError as error:
        raise StorageError(
            f"the menu cannot be written to {path}: {error.strerror}",
            hint="Free some space; what is fitted is kept, and the same command goes on.",
        ) from error
    return path


def read_menu(study: StudyRecord, target: Target = NATIVE) -> StoredMenu:
    """Read the menu in a study's run folder.

    Args:
        study: measured, at least in part.
        target: the runtime that it was searched for.

    Raises:
        StudyError: there is none, or one of another version.
    """
    path = study.folder / MENU
    try:
        content = json.loads(path.read_text())
        if content["version"] != MENU_VERSION:
            raise KeyError(f"version {content['version']}")
        layers = [
            LayerMenu(spec, tuple(map(_option, content["layers"][spec.name])))
            for spec in study.specs
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"study {study.name} has no menu that can be read in {path} ({error})",
            hint=f"autocompress search --resume {study.name} writes it again.",
        ) from error
    rest = content["rest_bytes"]
    inventory = Inventory(
        study.specs,
        study.skipped,
        rest,
        study.dense_bytes,
        study.dense_bf16_bytes // 2,
        tensors=tuple(
            Entry(name, dtype, tuple(shape)) for name, dtype, shape in content["tensors"]
        ),
        places={name: (home, tuple(names)) for name, (home, names) in content["places"].items()},
        target=target,
    )
    prices = {
        name: tuple(Price(*price) for price in prices) for name, prices in content["prices"].items()
    }
    groups = tuple(map(tuple, content["groups"]))
    return StoredMenu(Menu(tuple(layers)), inventory, groups, PricedMenu(prices))


def _option(entry: dict[str, Any]) -> Option:
    method, state = method_from_dict(entry["method"]), State(entry["state"])
    return Option(**{**entry, "method": method, "state": state})
