"""YAML with the line of every key kept, read so that all errors of a file come at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import ConfigurationError
from autocompress.space.problems import FileError, Problem, key_path, nearest_name, shown

Path_ = tuple[str | int, ...]
LARGEST_FILE_BYTES = 20_000_000
MOST_VALUES = 200_000  # aliases of aliases grow exponentially
DEEPEST = 50
# YAML 1.1 reads 1e-3 as a text; YAML 1.2 and every person read a number.
_FLOAT_WITHOUT_POINT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


@dataclass
class Document:
    """A YAML file as plain values.

    Attributes:
        path: the file.
        data: its mappings, lists and scalars.
        lines: line of every key and item, from 1.
        problems: what is wrong with the YAML itself: repeated keys, keys that are no text, unknown
            tags.
    """

    path: Path
    data: Any = None
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        """Line of a key, or of the nearest key above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path_, got: object, allowed: str, nearest: str = "") -> Problem:
        """Make a problem at a key."""
        return Problem(
            self.line(path),
            key_path(path),
            got if isinstance(got, str) else shown(got),
            allowed,
            nearest,
        )


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigurationError: the file is missing, unreadable or too large.
        FileError: it is no YAML.
    """
    text = _read_text(path)
    document = Document(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        line = mark.line + 1 if mark else 1
        raise FileError(f"{path}", [Problem(line, "", str(reason), "YAML")]) from error
    except RecursionError as error:
        raise FileError(
            f"{path}", [Problem(1, "", "too deep a nesting", f"at most {DEEPEST} levels")]
        ) from error
    if node is not None:
        document.data = _Reader(loader, document).value(node, ())
    return document


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ConfigurationError(
                f"file {path} is too large for a search space or recipe", wanted="at most 20 MB"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = (
            [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        )
        near = nearest_name(path.name, siblings)
        hint = f"Did you mean {path.with_name(near)}?" if near else ""
        raise ConfigurationError(f"there is no file {path}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"file {path} is not text", wanted="YAML in UTF-8") from error
    except OSError as error:
        raise ConfigurationError(
            f"file {path} cannot be read", got=error.strerror or str(error)
        ) from error


class _Reader:
    """Turns nodes into values and notes lines and problems on the way."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self.loader, self.document, self.count = loader, document, 0

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        self.count += 1
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            if self.count <= MOST_VALUES + 1 or len(path) == DEEPEST + 1:
                self._report(
                    node,
                    path,
                    "too many values or levels",
                    f"at most {MOST_VALUES} values, {DEEPEST} levels",
                )
            return None
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(child, (*path, key)) for key, child in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _items(self, node: yaml.MappingNode, path: Path_) -> Iterator[tuple[str, yaml.Node]]:
        first: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                self._report(
                    key_node, path, f"the key {shown(key_node.value)}", "keys that are plain text"
                )
                continue
            key = key_node.value
            if key in first:
                self._report(
                    key_node,
                    (*path, key),
                    "the same key again",
                    f"once; the first is in line {first[key]}",
                )
                continue
            first[key] = self.document.lines[(*path, key)] = line
            yield key, child

    def _scalar(self, node: yaml.Node, path: Path_) -> Any:
        plain = isinstance(node, yaml.ScalarNode) and not node.style
        if (
            plain
            and node.tag == "tag:yaml.org,2002:str"
            and _FLOAT_WITHOUT_POINT.fullmatch(node.value)
        ):
            return float(node.value)
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
            self._report(node, path, str(reason), "a plain value")
            return None

    def _report(self, node: yaml.Node, path: Path_, got: str, allowed: str) -> None:
        self.document.problems.append(
            Problem(node.start_mark.line + 1, key_path(path), got, allowed)
        )
