"""Every command answers a wrong option and a wrong file with one paragraph, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.cli.main import main
from tests.cli.test_shell import COMMANDS
from tests.conftest import make_tiny_model, make_tiny_tokenizer

MODEL = "my model"
# What is wrong in each: a name that is not there, a file in place of a folder, a folder in place of
# a file, bytes that are no text, a file that is cut off.
WRONG = """
search --model absent --data text.txt
search --model text.txt --data text.txt
search --model empty --data text.txt
search --model broken config --data text.txt
search --model cut off --data text.txt
search --model without weights --data text.txt
search --model MODEL --data absent.txt
search --model MODEL --data empty
search --model MODEL --data empty.txt
search --model MODEL --data bytes
search --model MODEL --data text.txt --space absent
search --model MODEL --data text.txt --space absent.yaml
search --model MODEL --data text.txt --space empty
search --model MODEL --data text.txt --space bytes
search --model MODEL --data text.txt --space empty.txt
search --model MODEL --data text.txt --space text.txt
search --model MODEL --data text.txt --runs-dir text.txt
search --model MODEL --data text.txt --storage sqlite:///text.txt
search --model MODEL --data text.txt --storage nothing://x
search --model MODEL --data text.txt --heal 1 --heal-data absent.txt
search --model MODEL --data text.txt --budget much
search --model MODEL --data text.txt --latency never
search --model MODEL --data text.txt --time soon
search --model MODEL --data text.txt --device nowhere
search --model MODEL --data text.txt --compute-dtype float8
search --model MODEL --data text.txt --target absent
search --model MODEL --data text.txt --pricing-tokens -1
search --resume absent
search --resume absent --runs-dir text.txt
front absent
front absent --runs-dir text.txt
front broken-study --runs-dir runs-of-mine
heal absent
heal MODEL --out healed
heal empty --out healed
attribute absent
attribute MODEL
export absent --out small
export broken-study --runs-dir runs-of-mine --out small
evaluate absent --data text.txt
evaluate text.txt --data text.txt
evaluate broken config --data text.txt
evaluate cut off --data text.txt
evaluate MODEL --data absent.txt
evaluate MODEL --data text.txt --against absent
evaluate MODEL --data text.txt --tasks absent-task
evaluate MODEL --data text.txt --tasks mine --task-folder absent
profile absent --data text.txt
profile MODEL --data absent.txt
profile MODEL --data text.txt --space absent
compress absent --data text.txt --budget 2x --out small
compress MODEL --data text.txt --out small
compress MODEL --data absent.txt --budget 2x --out small
compress MODEL --data text.txt --budget 2x --out text.txt
compress MODEL --data text.txt --budget 2x --out MODEL
compress MODEL --data text.txt --recipe absent.yaml --out small
compress MODEL --data text.txt --recipe empty --out small
compress MODEL --data text.txt --recipe bytes --out small
compress MODEL --data text.txt --recipe empty.txt --out small
compress MODEL --data text.txt --recipe text.txt --out small
cache --model absent
cache --older-than soon --empty
cache --down-to much --empty
cache --down-to 5GB
profile MODEL --data text.txt --cache-limit much
validate absent.yaml
validate empty
validate empty.txt
validate bytes
validate text.txt
validate MODEL
"""
FILES = ("my model", "broken config", "cut off", "without weights")


def words_of(line: str) -> list[str]:
    """The words of a line, names with spaces whole."""
    line = line.replace("MODEL", MODEL)
    for name in FILES:
        line = line.replace(name, name.replace(" ", "|"))
    return [word.replace("|", " ") for word in line.split()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model, a text, and what is wrong in its own way."""
    root = tmp_path_factory.mktemp("a stranger's folder")
    for name in FILES:
        make_tiny_model("llama").save_pretrained(root / name)
        make_tiny_tokenizer().save_pretrained(root / name)
    (root / "broken config" / "config.json").write_text('{"model_type": ')
    weights = root / "cut off" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (root / "without weights" / "model.safetensors").unlink()
    (root / "empty").mkdir()
    (root / "empty.txt").touch()
    (root / "bytes").write_bytes(bytes(range(256)) * 8)
    (root / "text.txt").write_text("\n".join(f"w{i % 90} w{i % 7}" for i in range(3_000)))
    study = root / "runs-of-mine" / "broken-study"
    study.mkdir(parents=True)
    (study / "study.json").write_text("{")
    return root


def test_every_command_that_help_lists_is_tried(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("\nCommands:\n")[2].splitlines()
    names = {line.split()[0] for line in listed if line.startswith("  ")}
    assert names == set(COMMANDS) == {line.split()[0] for line in WRONG.strip().splitlines()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_is_a_usage_error(command, capsys):
    assert main([command, "--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert "No such option" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("line", WRONG.strip().splitlines())
def test_a_wrong_file_or_word_is_one_paragraph(line, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    code = main(words_of(line))  # an unexpected error would be raised
    out, error = capfd.readouterr()
    assert code in (1, 2)
    paragraphs = [part for part in error.splitlines() if part.startswith("Error: ")]
    assert "Traceback" not in error
    if line.startswith("validate") and not paragraphs:  # its answer is a table of what to correct
        assert "to correct" in out
    else:
        assert len(paragraphs) == 1
