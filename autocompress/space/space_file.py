"""Search spaces by name or file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from autocompress.errors import ConfigurationError
from autocompress.methods.keep import Keep
from autocompress.records import LayerSpec
from autocompress.space.document import Document, read_document
from autocompress.space.method_entry import read_method
from autocompress.space.problems import Problem, SpaceFileError, nearest_name, shown
from autocompress.space.schema import check
from autocompress.space.space import Rule, Space
from autocompress.space.space_schema import RuleKeys, SpaceKeys

DEFAULT_SPACE = "default"


def load_space(name_or_path: str = DEFAULT_SPACE) -> Space:
    """Read a search space: one of those that come with the package, by name, or a YAML file.

    Raises:
        ConfigurationError: no such name or file.
        SpaceFileError: the file has errors; the message lists all of them.
    """
    return read_space(read_document(find_space(name_or_path)))


def find_space(name_or_path: str) -> Path:
    """Find the file of a search space.

    Raises:
        ConfigurationError: no such name or file.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        return path
    presets = space_names()
    if name_or_path in presets:
        return _presets_folder() / f"{name_or_path}.yaml"
    near = nearest_name(name_or_path, presets)
    raise ConfigurationError(
        "there is no such search space",
        got=repr(name_or_path),
        wanted=f"{', '.join(presets)}, or a YAML file",
        hint=f"Did you mean {near}?" if near else "",
    )


def space_names() -> tuple[str, ...]:
    """Names of the search spaces that come with the package."""
    return tuple(sorted(file.stem for file in _presets_folder().glob("*.yaml")))


def read_space(document: Document) -> Space:
    """Turn a file into a space.

    Raises:
        SpaceFileError: the file has errors; the message lists all of them.
    """
    data = document.data
    if not isinstance(data, dict):
        problem = document.problem(
            (), shown(data), "a mapping with the keys version, name, methods"
        )
        raise SpaceFileError(f"search space {document.path}", [*document.problems, problem])
    keys = check(SpaceKeys, data, document)
    entries = data.get("rules")
    pins = {
        index: read_method(entry["pin"], document, ("rules", index, "pin"))
        for index, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("pin"), dict)
    }
    if document.problems or keys is None:
        raise SpaceFileError(f"search space {document.path}", document.problems)
    return Space(
        name=keys.name,
        description=keys.description,
        families=keys.methods.families(),
        keep=keys.methods.keep,
        rules=tuple(
            Rule(
                match=rule.match.match(),
                methods=_allowed_methods(rule),
                min_bits=rule.min_bits,
                min_rank_fraction=rule.min_rank_fraction,
                max_ratio=rule.max_ratio,
                pin=pins.get(index),
                optional=rule.optional,
                line=document.line(("rules", index)),
            )
            for index, rule in enumerate(keys.rules)
        ),
        groups=tuple(group.group() for group in keys.groups),
    )


def unmatched_rules(space: Space, specs: tuple[LayerSpec, ...]) -> tuple[Problem, ...]:
    """List the rules that match no layer of a model."""
    return tuple(
        Problem(
            unmatched.rule.line or 1,
            "rules",
            str(unmatched.rule.match),
            "what a layer has, or `optional: true`",
            ", ".join(unmatched.nearest),
        )
        for unmatched in space.unmatched_rules(specs)
    )


def option_problems(
    space: Space, specs: tuple[LayerSpec, ...], document: Document
) -> tuple[Problem, ...]:
    """List the layers of a model left without an option, and the groups that share none."""
    problems = []
    for spec in specs:
        rule = space.rule_for(spec)
        try:
            space.options(spec)
        except ConfigurationError as error:
            line = rule.line if rule is not None and rule.line else document.line(("methods",))
            problems.append(
                Problem(
                    line, spec.name, str(error.got or error.what), error.wanted or "what fits it"
                )
            )
    if not problems:
        try:
            for members in space.grouped(specs):
                space.shared_options(members)
        except ConfigurationError as error:
            problems.append(
                Problem(
                    document.line(("groups",)), "groups", error.what, error.wanted or error.hint
                )
            )
    return tuple(problems)


def _allowed_methods(rule: RuleKeys) -> tuple[str, ...] | None:
    if rule.keep:
        return (Keep.name,)
    return tuple(rule.methods) if rule.methods is not None else None


def _presets_folder() -> Path:
    """The folder inside the installed package, or beside the package in a checkout."""
    package = Path(str(resources.files("autocompress")))
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"
