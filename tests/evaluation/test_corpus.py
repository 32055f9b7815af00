from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.errors import DataError
from autocompress.evaluation import corpus
from autocompress.evaluation.corpus import (
    check_disjoint,
    cut_in_three,
    load_texts,
    read_source,
)
from autocompress.evaluation.encoding import token_ids

WORDS = 1000


def prose(seed: int, sentences: int = 400) -> str:
    """Sentences of random words, no two alike."""
    draw = random.Random(seed)
    lines = [
        " ".join(f"word{draw.randrange(WORDS)}" for _ in range(9)) + "." for _ in range(sentences)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_bundled_texts_are_disjoint() -> None:
    texts = load_texts()
    check_disjoint({part: getattr(texts, part) for part in corpus.PARTS}, texts.names)


def test_one_source_is_cut_at_line_ends_into_40_20_and_40_percent(write: Any) -> None:
    text = prose(0)
    texts = load_texts(data=write("all.txt", text))
    parts = (texts.calibration, texts.selection, texts.report)
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts)
    assert [round(len(part) / len(text), 2) for part in parts] == [0.4, 0.2, 0.4]
    assert texts.names["selection"].endswith("all.txt (selection part)")


@pytest.mark.parametrize("text", ["x" * 1000, "ab " * 400, "paragraph one.\n\n" * 50])
def test_a_cut_loses_nothing(text: str) -> None:
    assert "".join(cut_in_three(text)) == text


def test_a_parts_own_source_goes_before_its_share(write: Any) -> None:
    everything, own = write("all.txt", prose(0)), write("report.txt", prose(1))
    texts = load_texts(data=everything, report_data=own)
    assert texts.report == prose(1)
    assert texts.calibration == cut_in_three(prose(0))[0]
    assert texts.names["report"] == own
    assert load_texts(report_data=own).selection == corpus.bundled_text("selection")


def test_the_same_file_twice_is_refused(write: Any) -> None:
    path = write("one.txt", prose(0))
    with pytest.raises(DataError, match="overlap"):
        load_texts(calibration_data=path, report_data=path)


def test_a_shifted_copy_inside_another_text_is_found(write: Any) -> None:
    shared = prose(0, 60)
    one = write("one.txt", "Something before it. " + shared + prose(1))
    other = write("other.txt", prose(2) + shared)
    with pytest.raises(DataError, match="shared passages"):
        load_texts(selection_data=one, report_data=other)


def test_a_short_licence_in_both_is_allowed(write: Any) -> None:
    licence = prose(9, 8)
    load_texts(
        selection_data=write("a.txt", licence + prose(1)),
        report_data=write("b.txt", licence + prose(2)),
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "empty"),
        ("blank.txt", " \n\n ", "empty"),
        ("latin.txt", b"caf\xe9 " * 100, "not UTF-8"),
        ("binary.txt", b"a\x00b" * 100, "binary"),
        ("bad.jsonl", '{"text": "one"}\n{"text": 3}\n', "line 2"),
        ("broken.jsonl", '{"text": "one"}\n\n{', "line 3"),
    ],
)
def test_files_that_are_no_text(write: Any, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(write(name, content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data file.*hub/name"):
        read_source(str(tmp_path / "nothing.txt"))
    with pytest.raises(DataError, match="folder"):
        read_source(str(tmp_path))


def test_records_of_json_lines_become_paragraphs(write: Any) -> None:
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in ("first", "second"))
    assert read_source(write("a.jsonl", lines)) == "first\n\nsecond"


def test_a_byte_order_mark_is_no_text(write: Any) -> None:
    assert read_source(write("bom.txt", b"\xef\xbb\xbfhello")) == "hello"


class FakeHub:
    """Stands in for ``datasets``."""

    def __init__(self, records: list[dict[str, Any]] | Exception) -> None:
        self.config = SimpleNamespace(HF_HUB_OFFLINE=False)
        self.records, self.calls = records, []  # type: ignore[var-annotated]

    def load_dataset(self, *arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        self.calls.append((arguments, options))
        if isinstance(self.records, Exception):
            raise self.records
        return iter(self.records)


def use_hub(monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]] | Exception) -> FakeHub:
    hub = FakeHub(records)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    return hub


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, [{"id": "x", "text": "one"}, {"id": "y", "text": "two"}])
    assert read_source("hub/owner/name:config:test") == "one\ntwo"
    assert hub.calls == [(("owner/name", "config"), {"split": "test", "streaming": True})]
    assert read_source("hub/owner/name") == "one\ntwo"
    assert hub.calls[1] == (("owner/name", None), {"split": "train", "streaming": True})


def test_the_prefix_may_be_left_out_where_the_form_is_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = use_hub(monkeypatch, [{"text": "one"}])
    read_source("owner/name::test")
    assert hub.calls == [(("owner/name", None), {"split": "test", "streaming": True})]


def test_offline_only_the_cache_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, [{"text": "one"}])
    hub.config.HF_HUB_OFFLINE = True
    read_source("hub/name")
    assert hub.calls[0][1]["streaming"] is False


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (ConnectionError("Couldn't reach 'name' on the Hub"), "cannot be reached.*local text file"),
        (ValueError("Unknown split 'tset'."), "cannot be loaded.*tset"),
        ([], "empty"),
        ([{"label": 1}], "no column of text: got columns label"),
    ],
)
def test_hub_errors(
    monkeypatch: pytest.MonkeyPatch, outcome: list[dict[str, Any]] | Exception, message: str
) -> None:
    use_hub(monkeypatch, outcome)
    with pytest.raises(DataError, match=message):
        read_source("hub/name")


def test_malformed_hub_name() -> None:
    with pytest.raises(DataError, match="not understood"):
        read_source("hub/a:b:c:d")


def test_token_limit_encodes_only_what_is_needed(tiny_tokenizer: Any) -> None:
    text = "w1 w2 w3 w4 " * 500
    every = token_ids(text, tiny_tokenizer)
    assert every.shape == (2000,)
    assert token_ids(text, tiny_tokenizer, limit=700).tolist() == every[:700].tolist()


def test_a_limit_is_met_where_tokens_are_long(tiny_tokenizer: Any) -> None:
    text = "unknownwordofmanyletters " * 600
    assert len(token_ids(text, tiny_tokenizer, limit=500)) == 500


def test_too_short_a_text_says_how_many_tokens_are_wanted(tiny_tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"the report text is too short: got 3 tokens, wanted at least 256"
    ):
        token_ids("w1 w2 w3", tiny_tokenizer, name="the report text")
    assert len(token_ids("w1 w2 w3", tiny_tokenizer, least=2)) == 3


def test_a_limit_below_the_minimum_is_not_the_texts_fault(tiny_tokenizer: Any) -> None:
    assert len(token_ids("w1 w2 w3 w4 " * 500, tiny_tokenizer, limit=10)) == 10
    with pytest.raises(DataError, match="got 3 tokens, wanted at least 10"):
        token_ids("w1 w2 w3", tiny_tokenizer, limit=10)
