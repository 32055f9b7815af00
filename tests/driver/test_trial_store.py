from __future__ import annotations

import math
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import Proposal
from autocompress.driver.trial_store import TrialStore
from autocompress.evaluation.jobs import Outcome
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.studies.study_store import to_trial_record
from autocompress.studies.trial_owner import OWNER, end_abandoned
from autocompress.units import Limits
from tests.driver.fake_search import INVENTORY, SPECS, header_of, measured
from tests.driver.knob_studies import new_study

PLAN = Plan.of(dict.fromkeys((spec.name for spec in SPECS), Quantize(4, 64)))
SIZE = INVENTORY.plan_bytes(PLAN)


@pytest.fixture
def store(tmp_path):
    return TrialStore(new_study(), header_of(tmp_path, Limits(SIZE, None)), priced=False)


def begin(store, phase: str = "knobs", size: int = SIZE):
    knobs = Knobs() if phase == "knobs" else None
    return store.begin(Proposal(phase, "searched", PLAN, knobs), size)


def test_the_outcome_decides_the_state_of_the_stored_trial(store):
    whole, partial = measured(PLAN, 0.2), measured(PLAN, 0.2, windows=4)
    records = [
        store.end(begin(store), Outcome(0, whole, seconds=2.0)),
        store.end(begin(store), Outcome(1, partial, 4, seconds=1.0)),
        store.end(begin(store), Outcome(2, error="no memory")),
        store.infeasible(begin(store)),
    ]
    assert [r.state for r in records] == ["complete", "stopped", "failed", "infeasible"]
    assert [r.selection for r in records] == [whole, None, None, None]
    assert [r.partial for r in records] == [None, partial, None, None]
    assert [r.seconds for r in records] == [2.0, 1.0, 0.0, 0.0]
    assert records[2].error == "no memory"
    stored = store.study.get_trials()
    assert [t.state.name for t in stored] == ["COMPLETE", "PRUNED", "FAIL", "PRUNED"]
    assert stored[0].values == [whole.figure, SIZE, whole.latency_ms]
    assert [store.objectives(r) is None for r in records] == [False, False, True, True]


OUTCOMES = [
    Outcome(0, measured(PLAN, 0.2), seconds=2.0),
    Outcome(0, measured(PLAN, 0.2, windows=4), 4, seconds=1.0),
    Outcome(0, error="no memory"),
]


def killed(*_arguments, **_named):
    raise KeyboardInterrupt


@pytest.mark.parametrize("outcome", OUTCOMES, ids=["measured", "stopped", "failed"])
def test_a_trial_cut_off_between_result_and_end_ends_as_it_would_have(store, monkeypatch, outcome):
    whole = store.end(begin(store), outcome)
    cut_off = begin(store)
    with monkeypatch.context() as patched:
        patched.setattr(store.study, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            store.end(cut_off, outcome)
    assert store.study.get_trials()[1].state is TrialState.RUNNING
    cut_off.set_user_attr(OWNER, cut_off.user_attrs[OWNER] | {"started": 1.0})  # long gone
    assert end_abandoned(store.study) == 1
    first, second = store.study.get_trials()
    assert (second.state, second.values) == (first.state, first.values)
    assert replace(to_trial_record(second, {}), number=0) == whole


def test_a_stopped_trial_has_the_loss_that_its_first_windows_point_to(store):
    """The losses of all plans swing alike, so the estimate is what all windows would have given."""
    whole = store.end(begin(store), Outcome(0, measured(PLAN, 0.2)))
    partial = measured(PLAN, 0.2, windows=5)
    loss = sum(partial.windows.loss) / 5  # not the mean of all windows: one more swings up
    partial = replace(partial, loss=loss, figure=math.exp(loss), latency_ms=None)
    stopped = store.end(begin(store), Outcome(1, partial, 5))
    assert partial.figure != pytest.approx(whole.selection.figure)
    assert store.objectives(stopped) == pytest.approx(store.objectives(whole))


def test_trials_of_other_searches_are_news_once_they_end(store, tmp_path):
    other = TrialStore(store.study, store.header, priced=False)
    trial = begin(other)
    assert store.news() == []
    assert store.running == {PLAN.hash}
    told = other.end(trial, Outcome(0, measured(PLAN, 0.1)))
    assert store.news() == [told]
    assert store.running == set()
    assert store.news() == other.news() == []


def test_bytes_beside_the_limit_are_a_constraint_of_every_trial(store):
    over = begin(store, "baseline", 3 * SIZE // 2)
    within = begin(store, "baseline")
    for trial in (over, within):
        store.infeasible(trial)
    first, second = store.study.get_trials()
    assert first.constraints == {"memory": pytest.approx(0.5, abs=1e-3)}
    assert second.constraints == {"memory": pytest.approx(0.0, abs=1e-3)}
