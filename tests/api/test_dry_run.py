from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from autocompress.cli.dry_run_view import show_dry_run
from autocompress.cli.main import main
from autocompress.driver.estimate import dry_run as dry_run_module
from autocompress.driver.estimate.dry_run import dry_run
from autocompress.driver.estimate.probes import PerElement, PerToken, Speed, probe
from autocompress.driver.estimate.trial_list import SEARCHED, expected_trials
from autocompress.errors import ConfigurationError, StudyError
from autocompress.requests.efforts import EFFORTS
from autocompress.requests.groups import SessionRequest
from autocompress.requests.verbs import SearchRequest
from autocompress.session.session import open_session
from autocompress.space.space_file import load_space
from autocompress.units import Limits
from tests.api.searches import BLOCKS, TRIALS, write_inputs

SPEED = Speed(PerToken(0.0, 1e-4), PerToken(0.0, 1e-3), 5.0, {"quantize": PerElement(1e-6, 0.0)})

MATRICES = 7 * BLOCKS + 1  # of the model that is searched


@pytest.fixture
def quick(monkeypatch):
    """Put the probes aside: they are tested by themselves."""
    monkeypatch.setattr(dry_run_module, "probe", lambda _session, _space: SPEED)


def request_in(folder, budget="8x", **settings):
    """A search in a folder, in a study of its own unless another is named."""
    given = {"study": "fresh", "runs_dir": folder / "runs", "budget": budget} | settings
    return SearchRequest(**write_inputs(folder) | given)


def contents(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_new_search_is_described_and_nothing_is_written(quick, tmp_path):
    runs = tmp_path / "runs"
    run = dry_run(request_in(tmp_path, trials=32))
    assert not runs.exists()
    assert (run.study, run.folder, run.finished_trials) == ("fresh", runs / "fresh", None)
    assert sum(run.trials.values()) == 32
    assert run.trials["baseline"] == EFFORTS["normal"].baselines
    assert run.ruled_out == 0
    assert sum(group.count for group in run.matrices) == MATRICES
    assert run.options == 4 * MATRICES
    assert (run.cached.statistics, run.cached.fits) == (0, 0)
    assert run.reachable
    assert run.limit_bytes == run.dense_bytes // 8
    assert [text.name for text in run.texts] == ["calibration", "selection", "report"]
    assert all(stage.seconds > 0 for stage in run.stages)
    data = json.loads(json.dumps(run.to_dict(), default=str))
    assert data["seconds"] == pytest.approx(sum(stage["seconds"] for stage in data["stages"]))


def test_after_the_search_all_is_known_and_nothing_is_touched(quick, record, workplace):
    before = contents(workplace / "runs")
    run = dry_run(request_in(workplace, study="first", trials=TRIALS + 3))
    assert run.finished_trials == TRIALS
    assert sum(run.trials.values()) == 3
    assert run.cached.statistics == MATRICES
    assert 0 < run.cached.fits <= run.options
    stages = {stage.name: stage for stage in run.stages}
    assert stages["calibrating"].seconds == stages["fitting"].seconds == 0
    assert contents(workplace / "runs") == before

    again = dry_run(SearchRequest(resume="first", runs_dir=workplace / "runs"))
    assert again.trials == {}
    assert contents(workplace / "runs") == before
    with pytest.raises(StudyError, match="other settings"):
        dry_run(request_in(workplace, "9x", study="first"))


def test_what_the_search_would_refuse_is_refused(quick, record, workplace, capsys):
    runs = workplace / "runs"
    for settings, wanted in (
        ({"time": 0.0}, "--time is too short"),
        ({"engine": "ray", "gpus_per_trial": 99}, "--gpus-per-trial is more than there are"),
        ({"heal_data": "x"}, "--heal 200"),
    ):
        with pytest.raises(ConfigurationError, match=wanted):
            show_dry_run(SearchRequest(resume="first", runs_dir=runs, **settings), as_json=True)
    assert capsys.readouterr().out == ""


def test_a_latency_limit_means_that_layers_are_timed_once_for_equal_ones(quick, tmp_path):
    run = dry_run(request_in(tmp_path, latency="0.9x", trials=20))
    (stage,) = (stage for stage in run.stages if stage.name == "timing layers")
    shapes = {group.shape for group in run.matrices}
    # Three options beside keeping it; the embedding is tied to the head and has two uses.
    assert stage.work.startswith(f"{3 * (len(shapes) + 1)} options")


def test_trials_are_those_that_the_search_makes(record, workplace):
    session = open_session(SessionRequest(runs_dir=workplace / "runs"))
    inventory = session.workbench.inventory
    limits, space = record.limits, load_space(str(workplace / "tiny.yaml"))
    made = len(record.trials)
    expected = expected_trials(inventory, limits, inventory.rest_bytes, made, space)
    assert [trial.phase for trial in expected] == [trial.phase for trial in record.trials]
    many = Counter(trial.phase for trial in expected_trials(inventory, limits, 0, 100, space))
    assert many[SEARCHED] == 100 - many["baseline"] - many["allocation"]
    hundredth = Limits(inventory.dense_bytes // 100, None)
    tight = expected_trials(inventory, hundredth, 0, 100, space)
    assert any(trial.ruled_out for trial in tight)


def test_the_command_says_that_a_budget_cannot_be_reached(quick, tmp_path, capsys):
    inputs = write_inputs(tmp_path)
    arguments = ["--space", inputs["space"], "--data", inputs["data"]]
    runs = tmp_path / "runs"
    code = main(["search", "--dry-run", "--budget", "90x", "--runs-dir", str(runs), *arguments])
    out, err = capsys.readouterr()
    assert code == 3
    assert "CANNOT BE REACHED" in out
    assert "no plan of the space 'tiny' is so small: got 178 kB" in err
    assert not runs.exists()


def test_the_command_gives_json(quick, tmp_path, capsys):
    inputs = write_inputs(tmp_path)
    arguments = ["--space", inputs["space"], "--data", inputs["data"], "--json"]
    runs = str(tmp_path / "runs")
    assert main(["search", "--dry-run", "--budget", "8x", "--runs-dir", runs, *arguments]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"study", "trials", "stages", "cached", "reachable", "options"} <= data.keys()


def test_probes_measure_every_method_of_a_space(tmp_path):
    inputs = write_inputs(tmp_path)
    session = open_session(SessionRequest(data=inputs["data"], runs_dir=tmp_path / "runs"))
    speed = probe(session, load_space(inputs["space"]))
    assert set(speed.fits) == {"quantize"}
    assert min(speed.scoring.seconds(1000), speed.calibrating.seconds(1000)) > 0
    assert speed.fits["quantize"].seconds((256, 256)) > 0
    assert speed.decoding_ms > 0
