from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import StorageError
from autocompress.judging.recipe_summary import bits_per_weight, methods_by_role, recipe_lines
from autocompress.pictures.front_picture import picture_of
from autocompress.pictures.front_plot import front_figure, write_front_html
from autocompress.pictures.front_png import write_front_png
from autocompress.pictures.hypervolume_plot import hypervolume_figure
from autocompress.units import Limits
from tests.studies.study_fixtures import SPECS, realistic_study, study_of, trial, with_windows

EXTERNAL = re.compile(
    r"<(?:script|link|img)[^>]*(?:src|href)\s*=\s*[\"']?(?:https?:)?//", re.IGNORECASE
)


def test_external_checker_can_fail():
    assert EXTERNAL.search('<script charset="utf-8" src="https://cdn.example/plotly.js"></script>')


def test_html_is_whole_and_opens_offline(tmp_path):
    text = write_front_html(realistic_study(), tmp_path / "deep" / "front.html").read_text()
    assert not EXTERNAL.search(text)
    assert "Plotly.newPlot" in text
    assert len(text) > 1_000_000
    for words in (
        "uniform 3 bit",
        "allocated 10x",
        "best: 1.6 MB",
        "budget 1.6 MB (10x)",
        "dense model",
        "embedding: ",
        "Hypervolume against trials",
    ):
        assert words in text


def test_png_is_a_picture(tmp_path):
    data = write_front_png(realistic_study(), tmp_path / "front.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


@pytest.mark.parametrize(
    "study",
    [
        study_of(),
        study_of(trial(0, 0.1, 1_000_000)),
        study_of(trial(0, -0.002, 1_000_000, 3.0), limits=Limits(None, 2.0)),
        study_of(trial(0, 0.1, 1_000_000), trial(1, 0.05, 1_200_000, 3.0)),
    ],
    ids=["empty", "one", "better than dense", "half timed"],
)
def test_thin_studies_are_drawn_too(study, tmp_path):
    assert write_front_html(study, tmp_path / "f.html").exists()
    assert write_front_png(study, tmp_path / "f.png").exists()


def test_every_measured_plan_is_in_the_picture_once():
    study = realistic_study()
    picture = picture_of(study)
    assert sorted(dot.trial.number for dot in picture.dots) == [t.number for t in study.complete]
    shown = [x for trace in front_figure(study).data if trace.mode == "markers" for x in trace.x]
    assert len(shown) == len(study.complete) + 1
    hollow = [
        x
        for trace in front_figure(study).data
        if "selection text" in (trace.name or "")
        for x in trace.x
    ]
    assert sorted(hollow) == sorted(t.bytes for t in study.complete if t.report is None)
    heights = [dot.height for dot in picture.front_line]
    assert heights == sorted(heights, reverse=True)
    assert {mark.text.split(":")[0] for mark in picture.marks} == {"best", "knee"}


def test_the_line_joins_the_front_by_divergence_whatever_perplexity_does():
    def at(number, increase, size, kl, latency_ms=3.0):
        made = trial(number, increase, size, latency_ms)
        return replace(made, selection=replace(made.selection, divergence=kl))

    wiggle = [at(0, 0.02, 1_000_000, 0.1), at(1, 0.03, 1_500_000, 0.05), at(2, 0.0, 2_000_000, 0.0)]
    picture = picture_of(study_of(*wiggle, at(3, 0.01, 1_600_000, 0.06, 1.0)))
    assert [dot.trial.number for dot in picture.front_line] == [0, 1, 2]
    assert [dot.group for dot in picture.dots] == ["front"] * 4  # the last one for its speed
    assert "by KL" in picture.footnote
    assert any("KL 0.0500" in line for line in picture.front_line[1].lines)


def test_bars_are_where_intervals_are_known_and_clipped_at_the_floor():
    study = with_windows(realistic_study())
    picture = picture_of(study)
    spans = {dot.trial.number: dot.span for dot in picture.dots}
    assert {n for n, span in spans.items() if span} == {
        t.number for t in study.complete if t.report
    }
    for dot in picture.dots:
        if dot.span:
            assert picture.floor <= dot.span[0] <= dot.height <= dot.span[1]
    assert "Bars: 95% intervals" in picture.footnote
    bars = [trace.error_y for trace in front_figure(study).data if trace.name == "front"]
    assert all(low >= 0 < high for low, high in zip(bars[0].arrayminus, bars[0].array, strict=True))
    assert "Bars" not in picture_of(realistic_study()).footnote


def test_curve_of_the_hypervolume_has_a_dot_for_each_measured_trial():
    study = realistic_study()
    line, *dots = hypervolume_figure(study).data
    assert list(line.y) == sorted(line.y)
    assert sorted(x for trace in dots for x in trace.x) == [t.number for t in study.complete]
    assert {trace.name for trace in dots} == {"baseline", "allocation", "knobs"}


def test_names_are_escaped(tmp_path):
    study = realistic_study()
    trials = (replace(study.trials[0], label="<script>alert(1)</script>"), *study.trials[1:])
    text = write_front_html(
        replace(study, name="<b>x", trials=trials), tmp_path / "f.html"
    ).read_text()
    assert "<script>alert" not in text
    assert "<title>&lt;b&gt;x</title>" in text


def test_unwritable_folder_is_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (write_front_html, write_front_png):
        with pytest.raises(StorageError, match=r"cannot write .*front"):
            write(realistic_study(), tmp_path / "file" / "front")


def test_recipe_in_short():
    study = realistic_study(Path("runs/x"))
    plan = study.trials[8].plan
    roles = methods_by_role(SPECS, plan)
    assert list(roles) == ["embedding", "query", "key", "output", "up", "down"]
    assert roles["key"] == "keep"
    assert "svd" in roles["up"]
    assert recipe_lines(SPECS, plan, most=3)[-1] == "and 4 more roles"
    assert all(len(line) <= 20 for line in recipe_lines(SPECS, plan, width=20))
    assert bits_per_weight(SPECS, study.trials[0].plan) == pytest.approx(8.25, abs=0.5)
    assert methods_by_role(SPECS, type(plan).of({SPECS[1].name: plan[SPECS[1].name]}))[
        "query"
    ].startswith("3 keep, 1 ")
