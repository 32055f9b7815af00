"""``--effort``, ``--fit-all`` and ``--time``, as they are typed."""

from __future__ import annotations

import json
import shutil

import pytest

from autocompress.calibration import screening
from autocompress.cli.main import main
from autocompress.driver.engines.local import LocalProcesses
from autocompress.evaluation.corpus import bundled_text
from autocompress.evaluation.scoring import Teacher
from autocompress.session import session as session_module
from autocompress.session.session import Session
from autocompress.studies.study_store import read_study
from tests.api.searches import write_half_demo

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 3, 2], group_sizes: [64, row]}
  svd: {metrics: [two_sided], rank_fractions: [0.1, 0.25], bits: [none, 8]}
"""
TOKENS = {"calibration": 2048, "selection": 2048, "report": 2048, "pricing": 512}
FEW = [word for part, n in TOKENS.items() for word in (f"--{part}-tokens", str(n))]
MODEL = ["--data", "a text.txt", "--space", "tiny.yaml"]
QUIETLY = ["--no-track", "--effort", "quick", "--runs-dir", "my runs"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("some place")
    write_half_demo(place / "half demo")
    (place / "a text.txt").write_text(bundled_text("selection")[:40_000], encoding="utf-8")
    (place / "tiny.yaml").write_text(SPACE, encoding="utf-8")
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "its copy")
    monkeypatch.chdir(tmp_path / "its copy")
    return tmp_path / "its copy"


def search(*arguments):
    few = () if "--dry-run" in arguments else FEW
    asked = [*MODEL, *QUIETLY, *few, *arguments]
    return main(["search", "--model", "half demo", "--budget", "6x", *asked])


def states(place):
    menu = json.loads((place / "my runs" / "half-demo-6x" / "menu.json").read_text())
    return [option["state"] for options in menu["layers"].values() for option in options]


def test_a_quick_search_fits_little_and_measures_a_handful_of_plans(place, capsys):
    assert search("--json") == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert sum(record["trials"].values()) <= 6
    assert record["front"]
    assert states(place).count("fitted") < 0.8 * len(states(place))
    assert "left out" in states(place)
    assert "Fitted " in said.err
    assert "options; " in said.err
    assert "Memory held at most: " in said.err
    assert "anew" not in said.err
    assert main(["front", "--methods", "--runs-dir", "my runs"]) == 0
    assert "were fitted. What the others lose is predicted" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_dense_model_predicts_a_text_once(place, capsys, monkeypatch):
    """What took long is kept: another budget, and whoever works for it, reads it."""
    monkeypatch.setattr(session_module, "LONG", 0.0)
    assert search("--trials", "1") == 0
    monkeypatch.setattr(Teacher, "of", None)
    assert search("--trials", "1", "--budget", "5x") == 0
    one, other = (read_study(f"half-demo-{budget}", place / "my runs") for budget in ("6x", "5x"))
    assert one.dense_report.figure == other.dense_report.figure


def test_two_workers_do_all_that_one_does(place, capsys, monkeypatch):
    """They fit, price, measure, report and refit; nothing but calibrating is done twice."""
    done = {}

    def counted(self, tasks, *arguments):
        values = do(self, tasks, *arguments)
        done[type(tasks[0]).__name__] = done.get(type(tasks[0]).__name__, 0) + len(tasks)
        return values

    do = LocalProcesses.do
    monkeypatch.setattr(LocalProcesses, "do", counted)
    normal = ["--effort", "normal", "--trials", "3", "--refit-tokens", "4096"]
    assert search(*normal, "--runs-dir", "alone") == 0
    assert done == {}
    capsys.readouterr()
    assert search(*normal, "--workers", "2") == 0
    assert set(done) == {"_Share", "_Gradients", "OnReport", "_Attempt"}
    assert "Refitting brought the outputs" in capsys.readouterr().err  # what a worker has to say
    alone, several = (
        [(trial.plan, trial.phase) for trial in read_study("half-demo-6x", place / runs).complete]
        for runs in ("alone", "my runs")
    )
    assert sorted(alone, key=str) == sorted(several, key=str)


def test_every_option_is_fitted_where_that_is_asked_for(place, capsys):
    assert search("--fit-all", "--trials", "1") == 0
    assert set(states(place)) == {"fitted"}
    assert "What the others lose" not in capsys.readouterr().out


def test_an_effort_that_there_is_not_is_refused(place, capsys):
    for command in (
        ["search", "--budget", "4x"],
        ["search", "--budget", "4x", "--dry-run"],
        ["compress", "half demo", "--budget", "4x", "--out", "small", "--data", "a text.txt"],
    ):
        assert main([*command, "--effort", "lazy"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "--effort: got 'lazy', wanted quick, normal, thorough" in error


def test_a_model_is_compressed_with_little_effort(place, capsys):
    command = ["compress", "half demo", "--out", "small", "--budget", "6x", *MODEL]
    assert main([*command, "--effort", "quick", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["bytes"] * 6 <= report["dense_bytes"]
    assert report["stage_memory_bytes"]["Calibrating"] > 10**8
    assert "Fitted " in said.err
    again = ["compress", "half demo", "--out", "again", "--budget", "6x", *MODEL]
    assert main([*again, "--effort", "quick"]) == 0
    assert "memory" in capsys.readouterr().out


def test_time_that_is_up_while_calibrating_loses_nothing(place, capsys):
    assert search("--time", "0.001s") == 1
    assert "time was up while calibrating: wanted a longer --time" in capsys.readouterr().err
    kept = list((place / "my runs" / "cache").rglob("*.safetensors"))
    assert kept
    stamps = {path: path.stat().st_ino for path in kept}
    assert search("--trials", "1") == 0
    assert all(path.stat().st_ino == inode for path, inode in stamps.items())


def test_time_that_is_up_while_fitting_loses_nothing(place, capsys, monkeypatch):
    """The clock of the fits runs out after the first; what calibration kept is there."""
    over_layers = screening.over_layers
    monkeypatch.setattr(
        screening,
        "over_layers",
        lambda *args, **named: over_layers(*args, **named | {"deadline": 0.0}),
    )
    assert search() == 1
    assert "time was up while fitting options" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(place)
    fitted = {path.name for path in (place / "my runs" / "cache").rglob("fits/*.json")}
    assert fitted
    assert search("--trials", "1") == 0


def test_where_no_time_is_left_to_fit_what_plans_take_it_is_predicted(place, capsys, monkeypatch):
    fit_taken = Session.fit_taken
    monkeypatch.setattr(
        Session,
        "fit_taken",
        lambda session, menu, taken, _deadline: fit_taken(session, menu, taken, 0.0),
    )
    assert search("--trials", "1") == 0
    assert "The time for fitting is up" in capsys.readouterr().err


def test_a_dry_run_says_how_much_less_a_quick_search_takes(place, capsys):
    def forecast(effort):
        command = ["search", "--model", "half demo", "--budget", "6x", *MODEL]
        assert main([*command, "--effort", effort, "--dry-run", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    quick, thorough = forecast("quick"), forecast("thorough")
    assert sum(quick["trials"].values()) == 6
    assert sum(thorough["trials"].values()) == 32
    names = [stage["name"] for stage in quick["stages"]]
    assert "refitting" not in names
    fits = [
        next(s["work"] for s in each["stages"] if s["name"] == "fitting")
        for each in (quick, thorough)
    ]
    assert int(fits[0].split()[0].replace(",", "")) < int(fits[1].split()[0].replace(",", ""))


def test_fitting_all_beside_a_recipe_that_says_everything_is_refused(place, capsys):
    (place / "recipe.yaml").write_text("version: 1\nlayers:\n  '*': {method: keep}\n")
    command = ["compress", "half demo", "--out", "small", "--recipe", "recipe.yaml"]
    assert main([*command, "--data", "a text.txt", "--fit-all"]) == 2
    assert "--fit-all has no effect beside a recipe" in capsys.readouterr().err


def test_what_is_measured_in_bf16_is_what_is_loaded(place, capsys):
    """Factors round otherwise than their product in 16 bits: all score in one way."""
    bf16 = ["--compute-dtype", "bfloat16", "--effort", "quick", "--methods", "svd"]
    assert main(["compress", "half demo", "--out", "small", "--budget", "3x", *MODEL, *bf16]) == 0
    seen = json.loads((place / "small" / "measurements.json").read_text())
    again = seen["verified"]["perplexity"]
    assert again == pytest.approx(seen["measurement"]["perplexity"], rel=1e-6)
