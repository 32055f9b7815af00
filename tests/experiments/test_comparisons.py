"""The comparisons of searches run from end to end: few tokens, few options, few evaluations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import evolution
import flat_search
import pytest
import trials_needed

from tests.api.searches import write_inputs


@pytest.fixture
def run(tmp_path_factory, monkeypatch, capsys):
    """Run a script in a folder that all tests share, and give what it prints."""
    folder = tmp_path_factory.getbasetemp() / "comparisons"
    folder.mkdir(exist_ok=True)
    inputs = write_inputs(folder)

    def run_script(script, *arguments: str) -> str:
        common = ["--model", inputs["model"], "--data", inputs["data"]]
        common += ["--space", inputs["space"]]
        common += ["--runs-dir", str(folder / "runs"), "--tokens", "512"]
        monkeypatch.setattr(sys, "argv", [script.__name__, *common, *arguments])
        script.main()
        return capsys.readouterr().out

    return run_script


def test_flat_searches_are_compared_with_the_projects(run, tmp_path: Path) -> None:
    flat = ["--evaluations", "4", "--variants", "nsga2+uniform", "random", "--out", str(tmp_path)]
    out = run(flat_search, "--trials", "2", *flat)
    assert "the project's search: 2 trials" in out
    assert "as good as the project's after 2" in out
    assert len(json.loads(next(tmp_path.glob("flat-random-*")).read_text())["rows"]) == 4
    assert run(flat_search, "--flat-only", *flat).count("as kept in") == 2


def test_the_evolution_is_compared_with_the_projects(run) -> None:
    few = ["--pool", "512", "--offspring", "4", "--stages", "256:2", "512:1"]
    few += ["--most-tokens", "3000", "--check-every", "1"]
    out = run(evolution, "--budget", "8x", "--trials", "2", *few)
    assert "== 8x ==" in out
    assert "from the allocated plan" in out
    assert "times the project's tokens" in out
    measured = int(out.split(" tokens, ")[1].split()[0])
    assert measured > 0  # options inside a compressed model


def test_trials_are_counted(run) -> None:
    out = run(trials_needed, "--trials", "1", "--times", "2")
    assert out.splitlines()[-2].split()[0] == "0"
    assert "%" in out
