"""Text in files: plain, JSON lines, Parquet, and any of the first two compressed with gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from autocompress.errors import DataError

MOST_CHARACTERS = 20_000_000  # read from the start of a table; far more than any score here uses
TEXT_COLUMN = "text"
WANTED = "a UTF-8 text file, .jsonl, either as .gz, or .parquet"
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_OTHER_KINDS = {
    b"PK\x03\x04": "a ZIP archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF document",
    b"ARROW1": "an Arrow file",
}


def file_of(source: str) -> tuple[Path, str | None]:
    """The file that a source names, and the column where it says one: ``data.parquet:content``."""
    path = Path(source).expanduser()
    before, colon, column = source.rpartition(":")
    if colon and before.endswith(".parquet") and not path.exists():
        return Path(before).expanduser(), column
    return path, None


def absolute_source(source: str) -> str:
    """The same source, valid from any folder where it is a file; others stay as they are."""
    path, column = file_of(source)
    if not path.is_file():
        return source
    return f"{path.absolute()}{'' if column is None else f':{column}'}"


def read_text_file(source: str) -> str:
    """Read a file as text.

    Args:
        source: its path; of a Parquet file also ``path.parquet:column``, else the column ``text``.

    Raises:
        DataError: it does not exist, cannot be read, or holds no text.
    """
    path, column = file_of(source)
    if path.is_dir():
        raise DataError(
            "a data source is a folder", got=source, wanted=WANTED, hint="Name a file in it."
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        hint = "A data set of the hub is written hub/name:config:split."
        raise DataError("no such data file", got=source, wanted=WANTED, hint=hint) from error
    except OSError as error:
        raise DataError(
            f"data file {source} cannot be read: {error.strerror}", wanted=WANTED
        ) from error
    if content.startswith(_PARQUET):
        return _read_parquet(path, column or TEXT_COLUMN, source)
    if column is not None:
        raise DataError(f"data file {source} is no Parquet file, and has no columns", wanted=WANTED)
    name = path
    if content.startswith(_GZIP):
        content, name = _unpacked(content, source), path.with_suffix("")
    text = _decoded(content, source)
    if ".jsonl" in (path.suffix, name.suffix):
        text = _join_records(text, source)
    return text


def _unpacked(content: bytes, source: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"data file {source} is damaged: it cannot be unpacked by gzip ({error})", wanted=WANTED
        ) from error


def _decoded(content: bytes, source: str) -> str:
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if content.startswith(mark)), None)
    if kind is not None:
        raise DataError(
            f"data file {source} is {kind}, and is not read",
            wanted=WANTED,
            hint="Unpack it, or write its text to a plain file.",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data file {source} is not text: byte {error.start} is not UTF-8",
            wanted=WANTED,
            hint="Convert it to UTF-8 first.",
        ) from error
    if "\0" in text:
        raise DataError("a data file is binary", got=source, wanted=WANTED)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_parquet(path: Path, column: str, source: str) -> str:
    import pyarrow
    from pyarrow import parquet

    texts: list[str] = []
    count = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names or not _is_text(file.schema_arrow.field(column).type):
                raise DataError(
                    f"{source} has no column {column} of text",
                    got=f"columns {', '.join(names)}",
                    wanted=f"a column of strings named {TEXT_COLUMN}, or another's name after a "
                    "colon",
                    hint=f"For example --data {path}:content.",
                )
            for batch in file.iter_batches(columns=[column]):
                texts += [text for text in batch.column(0).to_pylist() if text]
                count += sum(map(len, texts[-len(batch) :]))
                if count > MOST_CHARACTERS:
                    break
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"data file {source} is damaged: {str(error).splitlines()[0]}", wanted=WANTED
        ) from error
    return "\n\n".join(texts)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _join_records(text: str, source: str) -> str:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{source}, line {number}: not JSON ({error.msg})", wanted="one JSON object a line"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(
                f"{source}, line {number} has no text",
                wanted='an object with a string under "text"',
            )
        records.append(record["text"])
    return "\n\n".join(records)
