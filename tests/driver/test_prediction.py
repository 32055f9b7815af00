from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.prediction import predict
from autocompress.driver.proposing.proposer import Proposer
from autocompress.errors import BudgetUnreachable
from autocompress.studies.study import HEALED, Healing
from autocompress.units import Limits
from tests.driver.fake_search import DENSE_BYTES, INVENTORY, MENU, header_of
from tests.studies.study_fixtures import trial

RATIOS = (2, 3, 4, 6)


@pytest.fixture
def proposer():
    return Proposer(MENU, INVENTORY, Limits(DENSE_BYTES // 4, None))


@pytest.fixture
def study(tmp_path, proposer):
    """Allocations whose increase and divergence are twice and three times their score."""
    trials = []
    header = header_of(tmp_path, Limits(DENSE_BYTES // 4, None))
    for number, ratio in enumerate(RATIOS):
        plan = proposer.allocated(Knobs(), DENSE_BYTES / ratio)
        score = proposer.score(plan, Knobs())
        made = trial(number, 2 * score, INVENTORY.plan_bytes(plan))
        selection = replace(
            made.selection,
            divergence=3 * score,
            loss=header.dense_selection.loss + 2 * score,
        )
        trials.append(replace(made, plan=plan, selection=selection, report=None))
    return replace(header, trials=tuple(trials))


def test_a_plan_between_the_trials_is_read_off_them(study, proposer):
    limit = int(DENSE_BYTES / 5)
    predicted = predict(study, proposer, limit)
    score = proposer.score(predicted.plan, Knobs())
    assert predicted.bytes <= limit
    assert predicted.plan == proposer.allocated(Knobs(), limit)
    assert predicted.divergence == pytest.approx(3 * score)
    known = [2 * proposer.score(t.plan, Knobs()) for t in study.trials]
    assert min(known) <= predicted.increase <= max(known)
    assert (predicted.trials, predicted.beyond) == (len(RATIOS), False)


def test_healed_trials_do_not_count(study, proposer):
    first = study.trials[0]
    way = Healing(5, 1000, "text", {"steps": 5}, (), of=0, phase=first.phase, weights="n")
    better = replace(
        first,
        number=9,
        phase=HEALED,
        healing=way,
        selection=replace(first.selection, divergence=0.1 * first.selection.divergence),
    )
    limit = int(DENSE_BYTES / 2.5)
    more = replace(study, trials=(*study.trials, better))
    assert predict(more, proposer, limit) == predict(study, proposer, limit)


def test_beyond_the_trials_the_figures_are_lower_bounds(study, proposer):
    some = replace(study, trials=study.trials[:2])
    predicted = predict(some, proposer, DENSE_BYTES // 6)
    assert predicted.beyond
    assert predicted.divergence == pytest.approx(some.trials[-1].selection.divergence)


def test_a_study_without_trials_still_gives_a_plan(study, proposer):
    predicted = predict(replace(study, trials=()), proposer, DENSE_BYTES // 4)
    assert predicted.plan == proposer.allocated(Knobs(), DENSE_BYTES // 4)
    assert (predicted.divergence, predicted.increase, predicted.trials) == (None, None, 0)


def test_a_budget_that_no_plan_meets_says_what_can_be_reached(study, proposer):
    with pytest.raises(BudgetUnreachable, match=r"wanted at least .* \(\d+\.\d\dx\)"):
        predict(study, proposer, 10)
