from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import autocompress
from autocompress.deploy.weights import weight_files
from autocompress.driver.healing import heal_trial
from autocompress.driver.study_choice import Destination
from autocompress.errors import (
    AutocompressError,
    ConfigurationError,
    DataError,
    StorageError,
    StudyError,
)
from autocompress.evaluation.corpus import bundled_text
from autocompress.judging.front import front_of, pick
from autocompress.progress import SILENT
from autocompress.requests.healing import HealSettings
from autocompress.studies.healed_trials import FOLDER, compressed_of, healed_already, picture_of
from autocompress.studies.study import HEALED
from autocompress.studies.study_store import read_study

WORDS = {"steps": 6, "tokens": 512, "track": False}


@pytest.fixture(scope="module")
def text(workplace):
    path = workplace / "healing.txt"
    path.write_text(bundled_text("calibration")[:8_000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def study(search):
    """A finished search of which trials are healed."""
    return search(study="to-heal")


@pytest.fixture(scope="module")
def smallest(study):
    return min(study.complete, key=lambda trial: trial.bytes)


@pytest.fixture(scope="module")
def healed(study, smallest, text):
    return autocompress.heal(study, trial=smallest.number, data=text, **WORDS)


def test_a_healed_trial_is_a_further_trial_of_the_same_form_that_loses_less(
    study, smallest, healed
):
    after = read_study(study.name, study.folder.parent)
    (trial,) = (each for each in after.complete if each.phase == HEALED)
    assert (trial.number, trial.label) == (healed.trial, f"{smallest.label}, healed")
    assert (trial.plan, trial.bytes) == (smallest.plan, smallest.bytes)
    assert trial.key != smallest.key
    assert trial.selection.divergence < smallest.selection.divergence
    assert trial.report.divergence == healed.after.divergence < healed.before.divergence
    assert trial.selection.latency_ms == smallest.selection.latency_ms
    assert trial in front_of(after)
    assert smallest not in front_of(after)
    assert (trial.healing.of, trial.healing.phase) == (smallest.number, smallest.phase)
    assert trial.healing.checks[0]["step"] == 0
    assert trial.healing.steps == 6
    assert healed.increase_before == pytest.approx(
        math.log(healed.before.figure / healed.dense.figure)
    )
    stored = compressed_of(after.folder, trial).weights
    beside = sum(tensor.nbytes for name, tensor in stored.items() if "norm" not in name)
    assert beside <= trial.bytes
    assert not list((after.folder / FOLDER).glob("*.part"))
    assert picture_of(after.folder, trial.number).exists()


def test_what_was_healed_in_this_way_is_not_healed_again(study, smallest, healed, text):
    again = autocompress.heal(study, trial=smallest.number, data=text, **WORDS)
    assert again.trial == healed.trial
    assert again.after == healed.after


def test_a_search_that_goes_on_does_not_count_or_measure_by_healed_trials(search, study, healed):
    more = search(study=study.name, trials=len(study.trials) + 1)
    assert len([trial for trial in more.trials if trial.phase != HEALED]) == len(study.trials) + 1
    again = next(trial for trial in more.complete if trial.number == healed.trial)
    assert again.report.figure == healed.after.figure


def test_a_healed_trial_is_exported_as_what_was_measured(study, healed, tmp_path):
    """The export compares the perplexity with one in a fresh process itself."""
    out = tmp_path / "model"
    written = autocompress.export(study, out=out, trial=healed.trial)
    stored = {}
    for path in weight_files(out):
        stored |= load_file(path)
    record = read_study(study.name, study.folder.parent)
    numbers = compressed_of(record.folder, pick(record, str(healed.trial))).weights
    for name, tensor in numbers.items():
        assert (stored[name] == tensor).all()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    runs = study.folder.parent
    longer = tmp_path / "longer.txt"
    longer.write_text(bundled_text("calibration")[:24_000], encoding="utf-8")
    words = WORDS | {"data": str(longer), "runs_dir": runs}
    further = autocompress.heal(out, out=tmp_path / "further", **words)
    assert further.exported.verification.figure == pytest.approx(further.after.figure, rel=1e-4)
    assert further.after.bytes == written.report.weight_bytes
    # The best step is chosen on the selection text; the report text is another.
    assert further.after.divergence <= 1.05 * further.before.divergence
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_text_that_is_kept_for_measuring_is_refused(study, workplace):
    """The search's text is cut into calibration, selection and report."""
    whole = str(workplace / "text.txt")
    with pytest.raises(DataError, match=r"overlap|healing"):
        autocompress.heal(study, data=whole, **WORDS)


@pytest.mark.parametrize("times", [3, 40], ids=["less than a window", "one window"])
def test_too_little_text_is_refused(study, search, tmp_path, times):
    path = tmp_path / "short.txt"
    path.write_text("Too short a text to learn anything from. " * times)
    with pytest.raises(DataError, match="too short"):
        autocompress.heal(study, data=str(path), **WORDS)
    with pytest.raises(DataError, match="too short"):
        search(study="never-begun", heal=3, heal_data=str(path))
    assert not (study.folder.parent / "never-begun").exists()


def test_a_text_to_heal_on_without_steps_is_refused(search):
    with pytest.raises(ConfigurationError, match="--heal 200"):
        search(study="never-begun", heal_data="text.txt")


def test_a_checkpoint_that_is_a_folder_is_refused(study, text, tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        autocompress.heal(study, data=text, checkpoint=tmp_path, steps=5, tokens=512, track=False)


def test_what_is_not_whole_does_not_count_as_healed(study, smallest, healed):
    record = read_study(study.name, study.folder.parent)
    source, trial = pick(record, str(smallest.number)), pick(record, str(healed.trial))
    assert healed_already(record, source, trial.healing) == trial
    others = [each for each in record.trials if each.number != trial.number]
    for cut_off in (replace(trial, state="failed"), replace(trial, report=None)):
        assert (
            healed_already(replace(record, trials=(*others, cut_off)), source, trial.healing)
            is None
        )
    assert (
        healed_already(replace(record, folder=study.folder / "moved"), source, trial.healing)
        is None
    )
    assert healed_already(record, source, replace(trial.healing, tokens_hash="other")) is None


def test_one_member_that_cannot_be_healed_does_not_stop_the_others(
    study, search, text, monkeypatch
):
    def diverge(*_arguments):
        raise AutocompressError("healing diverges at step 2")

    monkeypatch.setattr("autocompress.driver.healing.heal_plan", diverge)
    found = search(study=study.name, heal=2, heal_data=text)
    assert not [trial for trial in found.trials if trial.healing and trial.healing.steps == 2]


def test_a_checkpoint_of_another_run_is_refused_and_kept(study, smallest, text, tmp_path):
    path = tmp_path / "run.part"
    destination = Destination(study.name, study.folder.parent)
    first, other = (HealSettings(steps=steps, tokens=512) for steps in (4, 5))
    with pytest.raises(KeyboardInterrupt):
        _heal_until_first_check(destination, smallest, first, text, path)
    size = path.stat().st_size
    with pytest.raises(ConfigurationError, match="another run of healing: settings"):
        heal_trial(destination, str(smallest.number), other, data=text, checkpoint=path)
    assert path.stat().st_size == size


def _heal_until_first_check(destination, trial, settings, text, path):
    class Stopping:
        def task(self, description, _total=None):
            if description.startswith("Healing (steps)"):
                raise KeyboardInterrupt
            return SILENT.task(description)

        def note(self, message):
            pass

    heal_trial(
        destination, str(trial.number), settings, data=text, checkpoint=path, progress=Stopping()
    )


def test_a_folder_is_healed_into_another(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="--out"):
        autocompress.heal(tmp_path, **WORDS)
    with pytest.raises((ConfigurationError, StorageError)):
        autocompress.heal(tmp_path, out=tmp_path / "out", **WORDS)


def test_a_trial_that_does_not_exist_is_named(study):
    with pytest.raises(StudyError, match="no trial 999"):
        autocompress.heal(study, trial=999, **WORDS)


def test_healing_that_is_killed_goes_on_to_the_same_numbers(study, smallest, text, tmp_path):
    runs = study.folder.parent
    command = [sys.executable, "-m", "autocompress", "heal", study.name, "--no-track"]
    command += ["--trial", str(smallest.number), "--runs-dir", str(runs), "--data", text]
    command += ["--steps", "14", "--tokens", "256"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        give_up = time.monotonic() + 300
        while not _passed_a_step(study.folder / FOLDER):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Going on with healing at step" in done.stderr
    resumed = read_study(study.name, runs).complete[-1]
    whole = autocompress.heal(
        study, trial=smallest.number, data=text, steps=14, tokens=256, rate=0.0100001, track=False
    )
    assert resumed.healing.steps == whole.healing.steps == 14
    assert resumed.report.figure == pytest.approx(whole.after.figure, rel=5e-3)


def _passed_a_step(folder):
    """Whether a run has kept what it had after some steps: its second checkpoint is larger."""
    return any(path.stat().st_size > 0 and _step(path) for path in folder.glob("*.part"))


def _step(path):
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["healing"])["facts"]["step"]
    except OSError:
        return 0


def test_a_search_heals_its_front_alike(search, study, text):
    found = search(study=study.name, heal=3, heal_data=text, refit=False)
    ways = [trial for trial in found.complete if trial.healing]
    healed = [trial for trial in ways if trial.healing.settings["steps"] == 3]
    before = [trial for trial in found.complete if trial.phase != HEALED]
    assert len(healed) >= 2
    by_number = {trial.number: trial for trial in before}
    for trial in healed:
        source = by_number[trial.healing.of]
        assert trial.selection.divergence <= source.selection.divergence * (1 + 1e-6)
        assert trial.report is not None
        assert trial.healing.settings == healed[0].healing.settings
    again = search(study=study.name, heal=3, heal_data=text, refit=False)
    assert len(again.trials) == len(found.trials)
