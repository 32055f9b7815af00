"""``autocompress.search``: from a model and a budget to a study with its front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.driver.opening import going_on, open_search
from autocompress.driver.proposing.reach import check_reachable
from autocompress.driver.stages import STAGES, Run
from autocompress.driver.study_choice import choose_study
from autocompress.driver.study_session import open_for_target
from autocompress.requests.verbs import SearchRequest
from autocompress.stage_memory import StageMemory, describe_peaks
from autocompress.studies.observer import Observer
from autocompress.studies.run_folder import find_study
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import read_study


def run_search(request: SearchRequest, observers: Sequence[Observer] = ()) -> StudyRecord:
    """Search, or go on with the study of that name and those settings, stage by stage.

    Args:
        request: what is asked.
        observers: told what happens.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, said before anything is computed.
        ConfigurationError: a setting, text, model, space or study that cannot be used.
    """
    memory = StageMemory(request.progress)
    if request.resume is not None:
        request = resumed(request)
    opened = open_search(replace(request, progress=memory), open_for_target, choose_study)
    inventory = opened.session.workbench.inventory
    if opened.study is None:
        limit = opened.budget.limits(inventory.dense_bytes, 1.0).memory_bytes
        check_reachable(opened.space, inventory, limit)
    run = Run(opened, observers)
    try:
        for stage in STAGES:
            stage.run(run)
    finally:
        run.close()
        if memory.peaks:
            memory.note(f"Memory held at most: {describe_peaks(memory.peaks)}.")
    return run.record


def resumed(request: SearchRequest) -> SearchRequest:
    """The request of the study that is to go on, the latest where ``resume`` is empty."""
    name, url, _ = find_study(request.resume or None, Path(request.runs_dir), request.storage)
    return going_on(request, read_study(name, Path(request.runs_dir), url), url)
