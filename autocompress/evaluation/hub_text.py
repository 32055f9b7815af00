"""Text of a data set of the hub, read with ``datasets`` (imported only when one is asked for)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autocompress.errors import DataError, first_line
from autocompress.quiet import quietened

PREFIX = "hub/"
DEFAULT_SPLIT = "train"
MOST_CHARACTERS = 20_000_000  # read from the start of a split; far more than any score here uses
_FORM = "hub/name:config:split, for example hub/Salesforce/wikitext:wikitext-2-raw-v1:test"
_TEXT_COLUMNS = ("text", "content", "document", "story", "sentence")


def is_hub_source(source: str) -> bool:
    """Whether a source names a data set of the hub rather than a file."""
    return source.startswith(PREFIX) or (
        source.count(":") == 2 and source[1:3] not in (":\\", ":/")
    )


def read_hub_text(source: str) -> str:
    """Join the texts of a data set's records, from its start up to ``MOST_CHARACTERS``.

    Offline (``HF_HUB_OFFLINE`` or ``HF_DATASETS_OFFLINE``) only what ``datasets`` has in its cache
    is read.

    Raises:
        DataError: an unknown data set, config or split, no text in it, or no way to reach the hub.
    """
    name, config, split = _parse(source)
    try:
        with quietened("huggingface_hub", "datasets"):  # the error that follows says it all
            return _join(_records(name, config, split), source)
    except DataError:
        raise
    except Exception as error:
        kind = "cannot be reached" if isinstance(error, ConnectionError) else "cannot be loaded"
        raise DataError(
            f"data set {name} of the hub {kind} ({first_line(error)})",
            got=source,
            wanted=_FORM,
            hint="Check the name and the network; "
            "a local text file works without one: --data FILE.",
        ) from error


def _parse(source: str) -> tuple[str, str | None, str]:
    name, *rest = source.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise DataError("a hub data set is not understood", got=repr(source), wanted=_FORM)
    config, split = [*rest, "", ""][:2]
    return name, config or None, split or DEFAULT_SPLIT


def _records(name: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    streaming = not datasets.config.HF_HUB_OFFLINE
    records: Iterable[dict[str, Any]] = datasets.load_dataset(
        name, config, split=split, streaming=streaming
    )
    return records


def _join(records: Iterable[dict[str, Any]], source: str) -> str:
    texts: list[str] = []
    count, column = 0, ""
    for record in records:
        column = column or _text_column(record, source)
        texts.append(record[column] or "")
        count += len(texts[-1]) + 1
        if count > MOST_CHARACTERS:
            break
    text = "\n".join(texts)
    if not text.strip():
        raise DataError("a data set of the hub is empty", got=source, wanted="records of text")
    return text


def _text_column(record: dict[str, Any], source: str) -> str:
    strings = [name for name, value in record.items() if isinstance(value, str)]
    if not strings:
        raise DataError(
            f"{source} has no column of text", got=f"columns {', '.join(record)}", wanted="strings"
        )
    return next((name for name in _TEXT_COLUMNS if name in strings), strings[0])
