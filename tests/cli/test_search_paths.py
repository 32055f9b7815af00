"""Searches as they are typed in a folder of one's own: relative paths, with spaces in the names."""

from __future__ import annotations

import random
import shutil

import optuna
import pytest

from autocompress.cli.main import main
from autocompress.driver.engines.here import Here
from autocompress.driver.proposing.knob_sampler import KnobSampler
from autocompress.driver.proposing.proposer import Proposer
from autocompress.evaluation.evaluator import Evaluator
from autocompress.studies.study_store import read_study
from tests.api.tiny_compression import SPACE
from tests.conftest import VOCABULARY, make_tiny_model, make_tiny_tokenizer

SEARCH = ["search", "--model", "my model", "--data", "my text.txt", "--space", "my space.yaml"]
FEW = ["--budget", "3x", "--no-track", "--no-refit", "--trials"]
RICH = """\
version: 1
name: rich
methods:
  keep: true
  quantize: {bits: [8, 4, 3, 2], group_sizes: [16]}
"""
TRIALS, CUT = 9, 6  # in all, and before the search is cut off


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a text and a space, to work in."""
    place = tmp_path / "my work"
    make_tiny_model("llama").save_pretrained(place / "my model")
    make_tiny_tokenizer().save_pretrained(place / "my model")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1500)
    (place / "my text.txt").write_text("\n".join(f"w{word}" for word in words))
    (place / "my space.yaml").write_text(SPACE)
    monkeypatch.chdir(place)
    return place


def labels(runs, name="my-model-3x"):
    return [trial.label for trial in read_study(name, runs).complete]


def test_a_study_goes_on_from_any_folder_and_its_workers_work_in_theirs(
    place, tmp_path, monkeypatch, capsys
):
    """Ray's workers are in a folder of their own; here the worker is asked for from another."""

    class Elsewhere(Here):
        def drive(self, search):
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                self.measure = self.measure()
            super().drive(search)

    def elsewhere(_settings, _measure, open_workers, **_options):
        return Elsewhere(open_workers[0])

    monkeypatch.setattr("autocompress.driver.stages.make_engine", elsewhere)
    for write in ("front_plot.write_front_html", "front_png.write_front_png"):
        monkeypatch.setattr(f"autocompress.pictures.{write}", lambda _study, path: path)
    assert main([*SEARCH, *FEW, "2", "--storage", "sqlite:///my studies.db"]) == 0
    printed = capsys.readouterr()
    assert "Study my-model-3x: my model, at most" in printed.out
    assert "open runs/my-model-3x/front.html" in printed.out
    assert "Study my-model-3x in runs/my-model-3x; stop it" in printed.err
    assert (place / "my studies.db").exists()
    first = labels(place / "runs")
    assert len(first) == 2

    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    runs = ["--runs-dir", "../my work/runs"]
    more = ["--no-track", "--no-refit", "--trials", "3"]
    assert main(["search", "--resume", "my-model-3x", *runs, *more]) == 0
    assert labels(place / "runs")[:2] == first
    assert len(labels(place / "runs")) == 3
    capsys.readouterr()
    there = [f"../my work/{word}" if " " in word else word for word in SEARCH]
    assert main([*there, *FEW, "3", *runs, "--storage", "sqlite:///../my work/my studies.db"]) == 0
    assert "Going on with study my-model-3x" in capsys.readouterr().err
    assert list(other.iterdir()) == []


def test_a_search_that_was_cut_off_breeds_from_its_trials(place, monkeypatch):
    """With NSGA-II, whose later generations are bred from the earlier ones.

    A search that has forgotten the trials before it was cut off goes on with other knobs.
    """
    planned, run, learn, left = Proposer.planned, Evaluator.run, KnobSampler.learn, [0]

    class FewParents(optuna.samplers.NSGAIISampler):
        def __init__(self, **options):
            super().__init__(**options | {"population_size": 3})

    def run_some(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return run(*arguments)

    def learn_the_new(sampler, trial, values):
        if trial.number > CUT:
            learn(sampler, trial, values)

    monkeypatch.setattr(optuna.samplers, "NSGAIISampler", FewParents)
    monkeypatch.setattr(Proposer, "planned", lambda *arguments: planned(*arguments)[:2])
    monkeypatch.setattr(Evaluator, "run", run_some)
    for write in ("front_plot.write_front_html", "front_png.write_front_png"):
        monkeypatch.setattr(f"autocompress.pictures.{write}", lambda _study, path: path)
    (place / "my space.yaml").write_text(RICH)
    few = ["--no-track", "--no-refit", "--trials"]
    search = [*SEARCH, "--budget", "4x", "--sampler", "nsga2", *few, str(TRIALS), "--study"]
    assert main([*search, "whole"]) == 0
    left[0] = CUT + 1
    assert main([*search, "cut"]) == 130
    shutil.copytree("runs", "copied")
    resume = ["search", "--resume", "cut", *few]
    assert main([*resume, str(TRIALS)]) == 0
    monkeypatch.setattr(KnobSampler, "learn", learn_the_new)
    assert main([*resume, str(CUT + 1), "--runs-dir", "copied"]) == 0

    whole, again, forgetful = (
        [
            (trial.phase, trial.params, trial.plan)
            for trial in read_study(name, place / runs).trials
            if trial.state != "failed"
        ]
        for name, runs in (("whole", "runs"), ("cut", "runs"), ("cut", "copied"))
    )
    assert len(whole) == TRIALS
    assert [phase for phase, *_ in whole[CUT:]].count("knobs") > 2
    assert again == whole
    assert forgetful[:CUT] == whole[:CUT]
    assert forgetful[CUT] != whole[CUT]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["--engine", "ray", "--workers", "2"],
        ["--workers", "2"],
        ["--workers", "2", "--storage", "my study.journal"],
    ],
)
def test_workers_find_what_is_named_from_the_folder_of_the_command(place, how, capsys):
    assert main([*SEARCH, *FEW, "4", *how]) == 0
    assert "best" in capsys.readouterr().out
    assert len(labels(place / "runs")) == 4
