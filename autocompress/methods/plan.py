"""A plan: which method stores which matrix.

It is the only thing that is proposed, measured, logged and exported.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocompress.errors import RecipeError
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.registry import PACKAGES, method_from_dict
from autocompress.records import LayerSpec

RECIPE_VERSION = 1


@dataclass(frozen=True)
class Plan(Mapping[str, Method]):
    """Frozen map from layer name to method, in model order. Layers that it does not name are kept.

    Attributes:
        methods: ``(layer name, method)`` pairs.
    """

    methods: tuple[tuple[str, Method], ...]

    @classmethod
    def of(cls, methods: Mapping[str, Method]) -> Plan:
        """Make a plan from a mapping."""
        return cls(tuple(methods.items()))

    @cached_property
    def _by_name(self) -> dict[str, Method]:
        return dict(self.methods)

    def __getitem__(self, name: str) -> Method:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __hash__(self) -> int:
        return hash(self.methods)

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits, the same in every process, independent of the order of layers.

        A layer that is kept hashes like a layer that is not named.
        """
        changed = {name: method.to_dict() for name, method in self.methods if method != Keep()}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]

    def to_recipe(self) -> dict[str, Any]:
        """Plain mapping for YAML and JSON."""
        names = sorted({method.name for _, method in self.methods} & PACKAGES.keys())
        packages = {name: PACKAGES[name] for name in names}
        return {
            "version": RECIPE_VERSION,
            **({"packages": packages} if packages else {}),
            "layers": {name: method.to_dict() for name, method in self.methods},
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Plan:
        """Read what ``to_recipe`` wrote.

        Raises:
            RecipeError: another version, or no layers.
            MethodError: a method or setting that does not exist.
        """
        if recipe.get("version") != RECIPE_VERSION or not isinstance(recipe.get("layers"), Mapping):
            raise RecipeError(
                "this is not a recipe of this version of autocompress",
                got=f"version {recipe.get('version')!r}",
                wanted=f"version {RECIPE_VERSION} and a mapping of layers",
            )
        packages = recipe.get("packages")
        return cls.of(
            {
                name: method_from_dict(dict(data), packages)
                for name, data in recipe["layers"].items()
            }
        )

    def layer_bytes(self, specs: tuple[LayerSpec, ...]) -> int:
        """Exact stored bytes of the given matrices under this plan, biases included."""
        keep = Keep()
        return sum(self._by_name.get(spec.name, keep).cost(spec) for spec in specs)

    def parameters(self, specs: tuple[LayerSpec, ...]) -> int:
        """Weights that the given matrices store under this plan; see ``Method.parameters``."""
        keep = Keep()
        return sum(self._by_name.get(spec.name, keep).parameters(spec) for spec in specs)

    def summary(self) -> str:
        """Count of layers per form: ``18 x 3 bit, 3 x svd, 2 x keep``."""
        counts = Counter(method.form for method in self._by_name.values())
        return ", ".join(f"{count} x {form}" for form, count in counts.most_common())
