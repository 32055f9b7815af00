"""The targets there are, by the names that people give."""

from __future__ import annotations

import difflib

from autocompress.deploy.format import Format
from autocompress.deploy.native import Native
from autocompress.errors import ConfigurationError

TARGETS: dict[str, Format] = {target.name: target for target in (Native(),)}


def target_of(name: str) -> Format:
    """The target of a name.

    Raises:
        ConfigurationError: there is none; the message says the nearest.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        raise ConfigurationError(
            "unknown --target",
            got=repr(name),
            wanted=", ".join(TARGETS),
            hint=f"Did you mean {near[0]!r}?" if near else "",
        )
    return TARGETS[name]
