from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from autocompress.api import attribute_function
from autocompress.api.attributing import Attributed
from autocompress.cli.attribute import attribute
from autocompress.errors import ConfigurationError, StorageError
from autocompress.judging.attribution import Attribution, Contribution, Lost
from autocompress.judging.bootstrap import Interval
from autocompress.records import PERPLEXITY
from autocompress.surgery.compressed import Compressed
from tests.studies.study_fixtures import realistic_study

STUDY = realistic_study()
TRIAL = STUDY.trials[10]
GROUPS = (
    Contribution(
        "method", "3 bit", 20, 12_000_000, 0.8, Lost(0.02, 0.02), Lost(0.08, 0.06),
        Interval(0.07, 0.10),
    ),
    Contribution("method", "svd", 4, 3_000_000, 0.2, Lost(0.09, 0.07), Lost(0.01, 0.01), None),
)  # fmt: skip
FOUND = Attributed(
    f"trial 10 of study {STUDY.name}",
    "autocompress-demo",
    TRIAL.plan,
    1_600_000,
    16_000_000,
    Attribution(Lost(0.10, 0.10), 15_000_000, 8192, GROUPS, PERPLEXITY),
    Lost(0.11, 0.09),
)


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the API and of tracking, which answer without doing anything."""
    calls = {}

    def answer(name, result):
        def take(*arguments, **options):
            calls[name] = arguments, options
            return result

        return take

    monkeypatch.setattr(
        attribute_function, "attribute_trial", answer("trial", (FOUND, STUDY, TRIAL))
    )
    opened = SimpleNamespace(session="session", compressed=Compressed(TRIAL.plan))
    monkeypatch.setattr(attribute_function, "open_folder", answer("folder", opened))
    monkeypatch.setattr(attribute_function, "attribute_plan", answer("plan", FOUND))
    monkeypatch.setattr(attribute_function, "log_attribution", answer("log", "sqlite:///x, run 7"))
    return calls


def run(*arguments):
    app = typer.Typer()
    app.command()(attribute)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def line_of(output, word):
    return next(line.split() for line in output.splitlines() if line.strip().startswith(word))


def test_table(asked):
    result = run("llama-10x")
    assert "10 times smaller" in result.stdout
    assert "report text     increase +0.1100, KL 0.0900" in result.stdout
    assert line_of(result.stdout, "3 bit") == [
        "3", "bit", "20", "12", "MB", "80%", "+0.0800", "0.0150", "+0.0600", "60%",
    ]  # fmt: skip
    assert line_of(result.stdout, "svd") == [
        "svd", "4", "3", "MB", "20%", "+0.0100", "+0.0100", "10%",
    ]  # fmt: skip
    assert line_of(result.stdout, "interaction") == ["interaction", "+0.0100", "+0.0300", "30%"]
    assert "Logged to sqlite:///x, run 7" in result.stderr
    (destination,), options = asked["trial"]
    assert destination.study == "llama-10x"
    assert (options["trial"], options["by"]) == ("best", ("method", "part", "depth"))
    assert asked["log"][0][:3] == (STUDY, TRIAL, FOUND.attribution)


def test_json_and_no_tracking(asked):
    result = run("--trial", "10", "--by", "role, layer", "--json", "--no-track")
    found = json.loads(result.stdout)
    assert [group["group"] for group in found["groups"]] == ["3 bit", "svd"]
    assert found["interaction"]["method"]["kl"] == pytest.approx(0.03)
    assert asked["trial"][1]["trial"] == "10"
    assert asked["trial"][1]["by"] == ("role", "layer")
    assert "log" not in asked


def test_a_folder(asked, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run(str(tmp_path), "--data", "text.txt", "--by", "role", "--trust-remote-code")
    (folder, request), _ = asked["folder"]
    assert (folder, request.data, request.device) == (tmp_path, "text.txt", None)
    assert request.trust_remote_code
    assert asked["plan"][1] == {"by": ("role",)}
    run(str(tmp_path), "--device", "cuda:1")
    assert asked["folder"][0][1].device == "cuda:1"
    assert set(asked) == {"folder", "plan"}


def test_options_that_do_not_go_together(asked, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="--trial does not go with the folder"):
        run(str(tmp_path), "--trial", "3")
    with pytest.raises(ConfigurationError, match="--tracking-uri does not go with the folder"):
        run(str(tmp_path), "--tracking-uri", "sqlite:///x")
    with pytest.raises(ConfigurationError, match="--data does not go with a study"):
        run("llama-10x", "--data", "text.txt")
    with pytest.raises(ConfigurationError, match="--device does not go with a study"):
        run("llama-10x", "--device", "cpu")
    with pytest.raises(ConfigurationError, match="--trust-remote-code does not go with a study"):
        run("llama-10x", "--trust-remote-code")
    assert asked == {}


def test_a_trial_of_a_folder_is_refused_by_any_number(asked, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="--trial does not go with"):
        attribute_function.attribute(tmp_path, trial=0)
    assert asked == {}


def test_the_words_of_the_command_are_those_of_the_function():
    words = set(inspect.signature(attribute_function.attribute).parameters) - {"progress"}
    assert words == set(inspect.signature(attribute).parameters) - {"as_json"}


def test_a_tracker_that_is_down_takes_nothing_away(asked, monkeypatch):
    def fail(*_arguments):
        raise StorageError("the attribution was not logged")

    monkeypatch.setattr(attribute_function, "log_attribution", fail)
    result = run("llama-10x")
    assert "3 bit" in result.stdout
    assert "the attribution was not logged" in result.stderr
    with pytest.raises(StorageError):
        run("llama-10x", "--tracking-uri", "sqlite:///nowhere.db")
