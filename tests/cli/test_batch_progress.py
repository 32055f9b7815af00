from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from autocompress.api.batch import ModelJob, ModelOutcome
from autocompress.cli.batch_progress import BatchProgress
from autocompress.requests.verbs import CompressRequest

ALIKE = CompressRequest(budget="2x")
JOBS = [ModelJob("org/small", Path("out/org--small"), ALIKE), ModelJob("./b", Path("out/b"), ALIKE)]
DONE = ModelOutcome(JOBS[0], "done", 61.4, {"ratio": 4.013})


def console(*, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)


def test_where_there_is_no_terminal_each_stage_is_a_line():
    target = console()
    with BatchProgress(JOBS, target) as drawn:
        drawn.stage(JOBS[0], "Fitting [matrices]", 2)
        drawn.advance(JOBS[0], 1)
        drawn.stage(JOBS[1], "Loading b", None)
        drawn.note(JOBS[1], "one [line]")
        drawn.ended(DONE)
        drawn.ended(ModelOutcome(JOBS[1], "failed", 2.0, error="why"))
    assert target.file.getvalue().splitlines() == [
        "org--small  Fitting [matrices] ...",
        "b           Loading b ...",
        "b           one [line]",
        "org--small  done in 61 s, 4.01 times less",
        "b           failed in 2 s",
    ]


def test_on_a_terminal_each_model_has_one_bar_that_goes_with_it():
    target = console(terminal=True)
    with BatchProgress(JOBS, target) as drawn:
        for job in JOBS:
            drawn.stage(job, "Loading", None)
        drawn.stage(JOBS[0], "Fitting", 4)
        drawn.advance(JOBS[0], 1)
        assert drawn._bars is not None
        tasks = [(task.description, task.percentage) for task in drawn._bars.tasks]
        assert tasks == [("org--small  Fitting", 25.0), ("b           Loading", 0.0)]
        drawn.ended(DONE)
        assert [task.description for task in drawn._bars.tasks] == ["b           Loading"]


def test_an_interruption_says_what_is_kept():
    target = console()

    def interrupted():
        with BatchProgress(JOBS, target) as drawn:
            drawn.ended(DONE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    last = target.file.getvalue().splitlines()[-1]
    assert "1 of 2 models were finished" in last
    assert "--skip-existing" in last
