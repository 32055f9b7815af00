from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from autocompress.cli.front import front
from autocompress.cli.front_table import next_command, print_front
from autocompress.cli.method_table import print_methods
from autocompress.errors import BudgetUnreachable, ConfigurationError
from autocompress.judging.front import front_of
from autocompress.judging.method_report import report_methods
from autocompress.judging.method_rivals import Offer
from autocompress.judging.picking import pick
from autocompress.records import PERPLEXITY
from autocompress.studies import study_store
from autocompress.studies.study import BASELINE, HEALED, Healing
from tests.studies.study_fixtures import SPECS, realistic_study, study_of, trial, with_windows


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a study that lies in ``tmp_path``; errors come through."""
    monkeypatch.setattr(
        study_store,
        "read_study",
        lambda _name, runs, _storage=None: realistic_study(runs / "llama-10x"),
    )
    app = typer.Typer()
    app.command()(front)

    def invoke(*arguments):
        result = CliRunner().invoke(
            app, ["--runs-dir", str(tmp_path), *arguments], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result

    return invoke


def test_table_picture_and_next_command(run, tmp_path):
    result = run()
    assert "allocated 10x" in result.stdout
    assert "67% of what the best uniform baseline" in result.stdout
    export = "autocompress export llama-10x --trial best --out llama-10x-best"
    assert f"Next: {export} --runs-dir {tmp_path}" in result.stdout
    assert "Wrote" in result.stderr
    assert {path.name for path in (tmp_path / "llama-10x").iterdir()} == {"front.html", "front.png"}


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((), 10),
        (("--max-size", "2.4MB"), 8),
        (("--max-size", "16x"), 12),
        (("--max-perplexity", "20", "--pick", "smallest"), 11),
        (("--max-latency", "2.2ms"), 5),
        (("--max-latency", "0.36x"), 5),
        (("--pick", "fastest"), 5),
        (("--pick", "3"), 3),
    ],
)
def test_picks(run, tmp_path, arguments, number):
    html = tmp_path / "elsewhere" / "plot.html"
    data = json.loads(run("--json", "--html", str(html), *arguments).stdout)
    assert data["picked"]["trial"] == number
    assert data["best"]["trial"] == 10
    assert data["html"] == str(html)
    assert html.exists()


@pytest.mark.parametrize(
    ("typed", "number"), [("1%", 8), ("0.001", 0), ("cosine 0.99", 21), ("cosine 0.95", 11)]
)
def test_quality_picks_the_smallest_that_keeps_it(run, typed, number):
    data = json.loads(run("--json", "--quality", typed).stdout)
    assert data["picked"]["trial"] == number
    assert all(verdict["met"] for verdict in data["picked"]["targets"])
    text = run("--quality", typed).stdout
    assert f"Picked trial {number} " in text
    assert "met: " in text.partition("Picked")[2]
    assert f"--trial {number} " in text


def test_a_picked_trial_shows_its_memory_by_role(run):
    assert "Memory by role" not in run().stdout
    out = run("--pick", "fastest").stdout
    assert "Memory by role" in out
    assert "parameters" in out
    picked = json.loads(run("--pick", "fastest", "--json").stdout)["picked"]
    roles = picked["by_role"]
    assert sum(role["matrices"] for role in roles) == len(SPECS)
    assert sum(role["bytes"] for role in roles) <= picked["bytes"]
    assert sum(role["parameters"] for role in roles) == picked["parameters"]
    for role in roles:
        assert f" {role['role']} " in out


def test_methods_are_reported_on_the_terminal_and_in_json(run):
    text = run("--methods").stdout
    assert "Methods on a front of 16 plans" in text
    assert "5 uniform svd 10x" in text
    assert "has no menu on disk" in text
    assert "Trial" not in text
    both = run("--methods", "--pick", "fastest").stdout
    assert "Methods on a front of 16 plans" in both
    assert "Memory" in both
    data = json.loads(run("--methods", "--json").stdout)
    assert {"8 bit", "svd", "svd int8", "keep"} <= {each["label"] for each in data["methods"]}
    assert "methods" not in json.loads(run("--json").stdout)


@pytest.mark.parametrize("width", [80, 140])
def test_method_table_fits_its_width(width):
    offers = {
        spec.name: [Offer("2 bit + low rank", 9, 2.0), Offer("tensor train int8", 8, 1e-4)]
        for spec in SPECS
    }
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    study = realistic_study()
    print_methods(report_methods(study, offers), len(front_of(study)), console, PERPLEXITY)
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for words in ("21 of 21", "tensor train int8 20,000x", "uniform 3 bit"):
        assert words in " ".join(text.split())


def test_wrong_limits_name_their_option(run):
    with pytest.raises(ConfigurationError, match="--max-size must be more than zero: got '0x'"):
        run("--max-size", "0x")
    with pytest.raises(ConfigurationError, match="--max-latency has an unknown unit"):
        run("--max-latency", "6parsec")
    with pytest.raises(ConfigurationError, match="--max-perplexity"):
        run("--max-perplexity", "-1")
    with pytest.raises(BudgetUnreachable, match="nearest"):
        run("--max-size", "100x")


def printed(study, width=None, **options):
    out = StringIO()
    console = Console(
        file=out, width=width or 80, force_terminal=width is not None, color_system=None
    )
    print_front(study, console, **options)
    return out.getvalue()


@pytest.mark.parametrize("width", [None, 80, 100, 150])
def test_no_number_is_cut_at_any_width(width):
    study = realistic_study()
    text = printed(study, width)
    assert "…" not in text
    assert ("KL" in text) == (width != 80)
    assert ("stored as" in text) == (width in (None, 150))
    for row in ("8 bit", "best", "knee", "baseline", "+0.0666", "1.97 MB"):
        assert row in text


def test_numbers_of_the_selection_text_are_marked():
    assert "* measured on the selection text only" in printed(realistic_study(finished=False))
    assert "*" not in printed(realistic_study())


def test_intervals_are_said_where_they_are_known():
    text = " ".join(printed(with_windows(realistic_study())).split())
    assert "±: half the 95 % interval of the increase, from 24 windows" in text
    assert "nats per token (95 % interval 0.0" in text
    assert "The difference, 0.0333, lies within 0.0" in text
    assert "chance" not in text
    assert "±" not in printed(realistic_study())
    assert "±" not in printed(with_windows(realistic_study()), 80).partition("The best")[0]


def test_a_rival_that_was_fitted_anew_is_shown_as_it_was_before_as_well():
    baselines = trial(0, 0.3, 1_000_000, phase=BASELINE, label="uniform", report=True)
    found = trial(1, 0.2, 1_000_000, report=True)
    anew = [
        trial(
            2 + source.number,
            0.8 * increase,
            source.bytes,
            plan=source.plan,
            phase=HEALED,
            label=f"{source.label}, refitted",
            report=True,
            healing=Healing(
                *(0, 0, "text", {"steps": 0}, ()),
                of=source.number,
                phase=source.phase,
                weights=f"n{source.number}",
            ),
        )
        for source, increase in ((baselines, 0.3), (found, 0.2))
    ]
    text = " ".join(printed(study_of(baselines, found, *anew)).split())
    assert "(uniform, refitted: 0.2496, before that 0.3120, report text)" in text


def test_too_few_windows_are_said():
    text = printed(with_windows(realistic_study(), windows=3))
    assert "3 windows, too few for intervals" in text
    assert "±" not in text


def test_a_picked_trial_is_shown_even_off_the_front():
    study = realistic_study()
    assert "uniform 2 bit" not in printed(study)
    assert "uniform 2 bit" in printed(study, picked=pick(study, "3"))


def test_nothing_within_the_budget_and_nothing_at_all():
    study = study_of(trial(0, 0.1, 2_000_000, label="[bold]odd"))
    text = printed(study)
    assert "No measured trial meets every target. The nearest is trial 0" in text
    assert "[bold]odd" in text
    assert "dense" in printed(study_of())
    assert next_command(study, None) == ""
    odd = replace(study, name="it's")
    assert (
        next_command(odd, study.trials[0])
        == """autocompress export 'it'"'"'s' --trial 0 --out 'it'"'"'s-0'"""
    )
