from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from autocompress.errors import DataError
from autocompress.evaluation.corpus import bundled_text, load_texts, read_source
from autocompress.evaluation.text_files import absolute_source

TEXT = "Line one.\nLine two, with \u00e9.\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_gzip_is_unpacked() -> None:
    Path("my text.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert read_source("my text.gz") == TEXT
    records = "\n".join(json.dumps({"text": text}) for text in ("a b", "c"))
    Path("records.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    assert read_source("records.jsonl.gz") == "a b\n\nc"


def test_parquet_is_read_by_column() -> None:
    table = pyarrow.table({"text": ["a", None, "b"], "other": ["c", "d", "e"], "id": [1, 2, 3]})
    parquet.write_table(table, "my data.parquet")
    assert read_source("my data.parquet") == "a\n\nb"
    assert read_source("my data.parquet:other") == "c\n\nd\n\ne"
    for column in ("id", "none"):
        with pytest.raises(DataError, match=f"no column {column} of text: got columns text, other"):
            read_source(f"my data.parquet:{column}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 and so on", "is a ZIP archive, and is not read"),
        (b"\x28\xb5\x2f\xfd and so on", "is compressed by zstd, and is not read"),
        (b"\x1f\x8b and no more", "is damaged: it cannot be unpacked by gzip"),
        (b"PAR1 and no more", "is damaged: "),
        (b"\x80\x02 and so on", "is not text: byte 0 is not UTF-8"),
        (b"a\0b", "a data file is binary"),
    ],
)
def test_other_files_are_refused(content: bytes, words: str) -> None:
    Path("data").write_bytes(content)
    with pytest.raises(DataError, match="wanted a UTF-8 text file") as said:
        read_source("data")
    assert words in str(said.value)


def test_a_column_of_no_table() -> None:
    Path("x.parquet").write_text(TEXT)
    with pytest.raises(DataError, match="is no Parquet file, and has no columns"):
        read_source("x.parquet:text")


def test_sources_that_are_files_are_made_absolute(tmp_path: Path) -> None:
    Path("a.parquet").write_text("")
    assert absolute_source("a.parquet:text") == f"{tmp_path}/a.parquet:text"
    assert absolute_source("a.parquet") == f"{tmp_path}/a.parquet"
    for source in ("hub/name:config:split", "bundled", "none.txt"):
        assert absolute_source(source) == source


def test_the_bundled_texts_by_name() -> None:
    texts = load_texts(data="bundled", bundled=False)
    assert texts.selection == bundled_text("selection")
    assert set(texts.names.values()) == {"bundled"}
    Path("own.txt").write_text(TEXT * 50)
    texts = load_texts(calibration_data="own.txt", report_data="bundled", bundled=False)
    assert (texts.report, texts.selection) == (bundled_text("report"), "")
    assert texts.names["selection"] == "not named"
