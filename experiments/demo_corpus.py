"""Builds the text of the bundled model from the running Python installation.

Every CPython carries the same three kinds of text: the sources of its standard library, the
docstrings in them, and the language reference in ``pydoc_data``. Documents are whole modules and
whole reference topics. Three disjoint sets of documents are held out (calibrate, select, report);
the rest is for training.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Modules about packaging and installing, tests, vendored or generated files.
EXCLUDED_FOLDERS = frozenset(
    (
        *("__pycache__", "distutils", "encodings", "ensurepip", "idle_test", "lib2to3"),
        *("site-packages", "test", "tests", "venv"),
    )
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")
WEB_ADDRESS = re.compile(r"://|www\.|\b[\w.+-]+@[\w-]+\.\w+", re.IGNORECASE)
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.])/(?:usr|home|root|opt|tmp|var|etc|bin|lib|dev|proc|mnt|Library|Users)\b|\b[A-Za-z]:\\"
)
HELD_OUT = ("calibrate", "select", "report")
HELD_OUT_CHARACTERS = 200_000
HELD_OUT_DOCUMENT_SIZES = range(2_000, 30_000)  # no single module may dominate a held-out text


@dataclass(frozen=True)
class Corpus:
    """Training documents, and the held-out texts by name."""

    training: tuple[str, ...]
    held_out: dict[str, str]


def clean(text: str) -> str:
    """Drop the lines that hold a web address, a mail address or an absolute path."""
    kept = (
        line.rstrip()
        for line in text.splitlines()
        if not WEB_ADDRESS.search(line) and not ABSOLUTE_PATH.search(line)
    )
    return "\n".join(kept).strip() + "\n"


def read_documents() -> dict[str, str]:
    """Read every module and reference topic, by a name that does not depend on the machine."""
    root = Path(sysconfig.get_path("stdlib"))
    documents: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS.intersection(relative.parts) or relative.name.startswith(
            EXCLUDED_PREFIXES
        ):
            continue
        if relative.parts[0] == "pydoc_data":
            continue
        documents[relative.as_posix()] = clean(path.read_text(encoding="utf-8", errors="ignore"))
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        documents[f"topic:{name}"] = clean(text)
    return {name: text for name, text in documents.items() if len(text) > 200}


def build_corpus() -> Corpus:
    """Split the documents by the hash of their names into training and three held-out texts."""
    documents = read_documents()
    by_hash = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held_out: dict[str, list[str]] = {name: [] for name in HELD_OUT}
    training: list[str] = []
    for name in by_hash:
        text = documents[name]
        emptiest = min(HELD_OUT, key=lambda part: sum(map(len, held_out[part])))
        room = sum(map(len, held_out[emptiest])) < HELD_OUT_CHARACTERS
        if room and len(text) in HELD_OUT_DOCUMENT_SIZES:
            held_out[emptiest].append(text)
        else:
            training.append(text)
    return Corpus(tuple(training), {part: "\n\n".join(texts) for part, texts in held_out.items()})
