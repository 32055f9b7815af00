"""Options that would do nothing beside others are refused, as they are typed."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import replace

import pytest

import autocompress
from autocompress.cli.main import main
from autocompress.driver.study_choice import REQUEST
from autocompress.errors import ConfigurationError
from autocompress.requests.verbs import SearchRequest
from autocompress.studies.storage import default_storage
from autocompress.studies.study_store import create_study
from autocompress.tracking.mlflow_client import how_to_browse
from tests.studies.study_fixtures import study_of, trial

OTHER = {
    "budget": "8x",
    "latency": "0.8x",
    "model": "elsewhere",
    "space": "default",
    "sampler": "nsga2",
    "seed": "0",
    "device": "cuda",
    "compute_dtype": "float32",
    "trust_remote_code": None,
    "data": "other.txt",
    "calibration_data": "other.txt",
    "selection_data": "other.txt",
    "report_data": "other.txt",
    "study": "another",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a study of a text and a space of one's own, at seed 3."""
    place = tmp_path_factory.mktemp("work place")
    (place / "my text.txt").write_text("text")
    (place / "my space.yaml").write_text("version: 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        request = SearchRequest(budget="10x", space="my space.yaml", seed=3, data="my text.txt")
        asked = request.located().to_dict()
    folder = place / "runs" / "demo"
    kept = {"identity": {}, REQUEST: asked, "trials": 1}
    made = study_of(folder=folder)
    create_study(replace(made, settings=made.settings | kept), default_storage(folder))
    return place


@pytest.fixture(autouse=True)
def _here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def refused(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_beside_resume_is_refused(capsys, workplace, name, dry_run):
    option = f"--{name.replace('_', '-')}"
    words = [option] if OTHER[name] is None else [option, OTHER[name]]
    said = refused(capsys, "search", "--resume", "demo", *words, *dry_run)
    assert f"{option} " in said
    if name != "study":
        command = said.partition("Another search: ")[2].rstrip(".\n")
        assert shlex.split(command)[:2] == ["autocompress", "search"]
        assert OTHER[name] in (None, "0", "default") or OTHER[name] in shlex.split(command)
        assert str(workplace) not in command


def test_another_budget_or_latency_is_told_to_the_front(capsys):
    said = refused(capsys, "search", "--resume", "demo", "--budget", "8x")
    assert "got 8x, wanted 10x" in said
    assert "autocompress front demo --budget 8x." in said
    said = refused(capsys, "search", "--resume", "demo", "--latency", "6ms")
    assert "autocompress front demo --max-latency 6ms." in said


def test_every_argument_of_search_is_refused_beside_resume_or_determines_no_trial():
    words = set(inspect.signature(autocompress.search).parameters)
    free = SearchRequest.free()
    assert words >= free
    assert words - free >= set(OTHER)


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("space", "seed")])
def test_a_setting_beside_resume_is_refused_in_python(name):
    value = True if OTHER[name] is None else OTHER[name]
    with pytest.raises(ConfigurationError, match="--resume demo"):
        autocompress.search(resume="demo", track=False, **{name: value})


def test_tokens_beside_resume_are_refused_in_python():
    with pytest.raises(ConfigurationError, match=r"selection.tokens"):
        autocompress.search(resume="demo", track=False, selection_tokens=100)


def test_the_settings_of_the_study_itself_pass(monkeypatch):
    def reached(*_arguments, **_options):
        raise ConfigurationError("it goes on")

    monkeypatch.setattr("autocompress.api.functions.run_search", reached)
    same = {"budget": "10x", "space": "my space.yaml", "seed": 3, "data": "my text.txt"}
    with pytest.raises(ConfigurationError, match="it goes on"):
        autocompress.search(resume="demo", track=False, trials=9, **same)
    words = [f"--{name}={value}" for name, value in same.items()]
    assert main(["search", "--resume", "demo", "--no-track", *words]) == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("search --budget 4x --no-track --tracking-uri http://host", "--tracking-uri"),
        ("search --budget 4x --heal-data my.txt", "--heal-data"),
        ("search --budget 4x --address auto", "--address"),
        ("search --budget 4x --gpus-per-trial 1", "--gpus-per-trial"),
        ("heal demo --no-track --tracking-uri http://host", "--tracking-uri"),
        ("heal demo --overwrite", "--overwrite"),
        ("attribute demo --no-track --tracking-uri http://host", "--tracking-uri"),
        ("front demo --budget 4x --html front.html", "--html"),
        ("front demo --budget 4x --png front.png", "--png"),
        ("evaluate --limit 3", "--limit"),
        ("evaluate --task-folder .", "--task-folder"),
        ("evaluate --tasks mine --part report", "--part"),
        ("evaluate --tasks mine --tokens 100", "--tokens"),
        (
            "search --budget 4x --no-track --data a --calibration-data b --selection-data c "
            "--report-data d",
            "--data",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(capsys, command, said):
    assert main(shlex.split(command)) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("named", "environment", "advice"),
    [
        (None, None, "mlflow ui"),
        ("http://host:5000", None, "open http://host:5000"),
        ("https://me:secret@host", None, "open https://me:***@host"),
        (None, "http://host:5000", "open http://host:5000"),
        (
            "sqlite:///my runs.db",
            "http://x",
            "mlflow ui --backend-store-uri 'sqlite:///my runs.db'",
        ),
        (None, "sqlite:///runs.db", "mlflow ui --backend-store-uri sqlite:///runs.db"),
        ("./mlruns", None, "mlflow ui --backend-store-uri ./mlruns"),
    ],
)
def test_how_tracked_runs_are_browsed(monkeypatch, named, environment, advice):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert how_to_browse(named) == advice


def test_a_search_that_is_tracked_by_a_server_says_to_open_it(workplace, monkeypatch, capsys):
    record = study_of(trial(0, 0.1, 1_000_000), folder=workplace / "runs" / "demo")
    monkeypatch.setattr("autocompress.api.functions.search", lambda *_, **__: record)
    monkeypatch.setattr("autocompress.cli.front.write_plots", lambda *_: {})
    assert main(["search", "--budget", "4x", "--tracking-uri", "http://host:5000"]) == 0
    said = capsys.readouterr().out
    assert "open http://host:5000    every trial" in said
    assert "mlflow ui" not in said
