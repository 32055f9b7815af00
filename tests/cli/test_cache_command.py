"""``autocompress cache`` and ``--cache-limit``, as they are typed."""

from __future__ import annotations

import json
import os
import random
import shutil
import time

import pytest

from autocompress.cli.main import main
from tests.api.tiny_compression import SPACE
from tests.conftest import VOCABULARY, make_tiny_model, make_tiny_tokenizer

PROFILE = ["profile", "--data", "text.txt", "--space", "tiny.yaml", "--json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two models, of which the second was profiled a day after the first."""
    place = tmp_path_factory.mktemp("my place")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=3_000)
    (place / "text.txt").write_text(" ".join(f"w{word}" for word in words))
    (place / "tiny.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, family in (("old model", "llama"), ("new model", "gpt2")):
            make_tiny_model(family).save_pretrained(name)
            make_tiny_tokenizer().save_pretrained(name)
            assert main([*PROFILE, name]) == 0
            if name == "old model":
                day = time.time() - 86_400
                for path in (place / "runs" / "cache").rglob("*"):
                    os.utime(path, (day, day))
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, whose entries are as old."""
    shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def asked(capsys, *arguments):
    capsys.readouterr()
    assert main(["cache", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def on_disk(place):
    files = [p for p in (place / "runs" / "cache").rglob("*") if p.is_file()]
    return sum(path.stat().st_size for path in files if path.name != "model.json")


def test_it_is_shown_by_model_and_kind(place, capsys):
    held = asked(capsys)["held"]
    assert {each["model"].rpartition("/")[2] for each in held} == {"old model", "new model"}
    assert {"statistics", "layers", "fits"} <= {each["kind"] for each in held}
    assert sum(each["bytes"] for each in held) == on_disk(place)
    ages = {each["model"].rpartition("/")[2]: time.time() - each["used"] for each in held}
    assert ages["old model"] > 80_000 > 3_600 > ages["new model"]
    assert main(["cache"]) == 0
    table = capsys.readouterr().out
    for word in ("old model", "statistics", "last used", "about 24 h ago"):
        assert word in table


def test_one_model_is_emptied_by_its_name(place, capsys):
    name = next(each["model"] for each in asked(capsys)["held"] if "old" in each["model"])
    before = on_disk(place)
    answer = asked(capsys, "--empty", "--model", name)
    assert answer["removed_bytes"] == before - on_disk(place) > 0
    assert {each["model"] for each in asked(capsys)["held"]} != {name}
    assert not any("old" in each["model"] for each in asked(capsys)["held"])
    assert len(list((place / "runs" / "cache").iterdir())) == 1


def test_what_nobody_used_for_long_is_removed(place, capsys):
    assert asked(capsys, "--empty", "--older-than", "48h")["removed_bytes"] == 0
    assert asked(capsys, "--empty", "--older-than", "2h")["removed_bytes"] > 0
    assert {each["model"].rpartition("/")[2] for each in asked(capsys)["held"]} == {"new model"}


def test_the_oldest_goes_first_down_to_a_size(place, capsys):
    new = sum(e["bytes"] for e in asked(capsys)["held"] if "new" in e["model"])
    answer = asked(capsys, "--empty", "--down-to", f"{new + 100}B")
    assert answer["left_bytes"] == on_disk(place) <= new + 100
    assert any("new" in each["model"] for each in asked(capsys)["held"])
    assert asked(capsys, "--empty")["left_bytes"] == 0
    assert main(["cache"]) == 0
    assert "holds nothing" in capsys.readouterr().out


def test_a_command_holds_the_cache_to_a_limit(place, capsys):
    new = sum(e["bytes"] for e in asked(capsys)["held"] if "new" in e["model"])
    limit = ["--cache-limit", f"{new + 1000}B"]
    assert main([*PROFILE, "new model", *limit]) == 0
    captured = capsys.readouterr()
    assert "Removed" in captured.err
    assert json.loads(captured.out)["layers"]
    assert on_disk(place) <= new + 1000
    left = {each["model"].rpartition("/")[2] for each in asked(capsys)["held"]}
    assert "new model" in left


def test_what_was_removed_is_computed_again(place, capsys):
    assert main([*PROFILE, "new model"]) == 0
    first = json.loads(capsys.readouterr().out)
    asked(capsys, "--empty")
    assert main([*PROFILE, "new model"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == first["layers"]


def test_a_folder_without_a_note_is_an_unknown_model(place, capsys):
    for note in (place / "runs" / "cache").glob("*/model.json"):
        note.unlink()
    assert {each["model"] for each in asked(capsys)["held"]} == {"unknown model"}


def test_a_dry_run_looks_and_neither_uses_nor_removes(place, capsys):
    def state():
        return {p: p.stat().st_mtime_ns for p in (place / "runs" / "cache").rglob("*.*")}

    before = state()
    options = ["--data", "text.txt", "--space", "tiny.yaml", "--budget", "2x", "--dry-run"]
    assert main(["search", "--model", "old model", *options, "--cache-limit", "1B"]) == 0
    assert state() == before
