"""What a person narrows a search space to: some of its methods, and some of the matrices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from autocompress.errors import ConfigurationError
from autocompress.methods.keep import Keep
from autocompress.methods.registry import METHODS
from autocompress.records import LayerSpec

Words = str | Sequence[str] | None  # one, several with commas between, or a list of such


@dataclass(frozen=True)
class Selection:
    """Which methods may be used, and which matrices may be compressed; whatever is left stays.

    Attributes:
        methods: names of the methods that may be used; all of the space when empty.
        layers: shell globs over names of matrices, or names tied to them: no others are
            compressed; all may be when empty.
        keep: globs over the matrices that stay as they are.
    """

    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @classmethod
    def of(cls, methods: Words = None, layers: Words = None, keep: Words = None) -> Selection:
        """Read what a person gives.

        Raises:
            ConfigurationError: nothing is named where something should be, or a method that does
                not exist.
        """
        given = {"methods": methods, "layers": layers, "keep": keep}
        selection = cls(**{name: _names(name, words) for name, words in given.items()})
        for method in selection.methods:
            if method not in METHODS:
                near = difflib.get_close_matches(method, METHODS, n=1)
                raise ConfigurationError(
                    "--methods names an unknown method",
                    got=repr(method),
                    wanted=", ".join(METHODS),
                    hint=f"Did you mean {near[0]}?" if near else "",
                )
        if selection.methods == (Keep.name,):
            raise ConfigurationError(
                "--methods leaves nothing to compress with", got=Keep.name, wanted="another method"
            )
        return selection

    def to_dict(self) -> dict[str, Any]:
        """What is narrowed, as lists."""
        given = {"methods": self.methods, "layers": self.layers, "keep": self.keep}
        return {name: list(names) for name, names in given.items() if names}

    def leaves(self, spec: LayerSpec) -> bool:
        """Whether a matrix stays as it is."""
        return _named(spec, self.keep) or bool(self.layers and not _named(spec, self.layers))

    def check(self, specs: Sequence[LayerSpec]) -> None:
        """Make sure that each glob matches something, and that something is left to compress.

        Raises:
            ConfigurationError: it does not; the message names what is near.
        """
        for option, globs in (("--layers", self.layers), ("--keep", self.keep)):
            for glob in globs:
                if not any(_named(spec, (glob,)) for spec in specs):
                    raise ConfigurationError(
                        f"{option} matches none of the {len(specs)} matrices",
                        got=repr(glob),
                        wanted=f"a glob over names such as {', '.join(_near(glob, specs))}",
                    )
        if all(map(self.leaves, specs)):
            raise ConfigurationError(
                "nothing is left to compress",
                got=" ".join(f"--{name} {','.join(g)}" for name, g in self.to_dict().items()),
                wanted="a matrix that --layers names and --keep does not",
            )


EVERYTHING = Selection()


def _names(option: str, words: Words) -> tuple[str, ...]:
    if words is None:
        return ()
    listed = [words] if isinstance(words, str) else list(words)
    names = [name.strip() for each in listed for name in str(each).split(",")]
    named = tuple(dict.fromkeys(name for name in names if name))
    if listed and not named:
        raise ConfigurationError(f"--{option} names nothing", wanted="names, or leave it out")
    return named


def _named(spec: LayerSpec, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in (spec.name, *spec.tied) for glob in globs)


def _near(glob: str, specs: Sequence[LayerSpec]) -> list[str]:
    """Names near to a glob: of the matrices, or of those of one kind, with the depth left open."""
    names = [name for spec in specs for name in (spec.name, *spec.tied)]
    ends = {f"*.{name.rpartition('.')[2]}": None for name in names}
    kinds = {f"*.{'.'.join(name.split('.')[-2:-1])}.*": None for name in names if name.count(".")}
    near = difflib.get_close_matches(glob, [*names, *kinds, *ends], n=3, cutoff=0.5)
    return near or names[:3]
