"""What a search tries next: what is planned, then knobs and, every few trials, a swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from autocompress.driver.proposing.aiming import bracket, sightings_of
from autocompress.driver.proposing.knob_sampler import KnobSampler
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import Proposal, Proposer
from autocompress.driver.proposing.shares import ALL, Planned
from autocompress.judging.against_dense import meets
from autocompress.judging.dominance import non_dominated
from autocompress.judging.picking import best_or_none
from autocompress.studies.study import BASELINE, PLANNED, StudyRecord, TrialRecord

DRAWS = 16  # of knobs, until they give a plan that has not been tried
# Of the smallest plan that may keep a quality on the selection text, by turns: some are a little
# larger, as the report text may ask for more.
LADDER = (1.0, 1.03, 1.0, 1.06, 1.0, 1.12)
SWAP_EVERY = 4  # searched trials, one is a neighbour of a plan on the front


class Turns:
    """Proposes one plan after the other, none twice.

    Args:
        proposer: makes plans.
        sampler: proposes knobs.
        trials: of the study in all.
        planned: how many plans at most need no sampler.
    """

    def __init__(
        self, proposer: Proposer, sampler: KnobSampler, trials: int, planned: Planned = ALL
    ) -> None:
        self.proposer, self.sampler = proposer, sampler
        self._planned = proposer.planned(trials, planned)

    def next(
        self, record: StudyRecord, running: Sequence[str], measured_now: set[str]
    ) -> Proposal | None:
        """The next proposal; ``None`` when there is nothing new to try.

        Args:
            record: the study with its trials so far.
            running: phases of this search's trials that have not ended.
            measured_now: hashes of the plans that any search is measuring.
        """
        tried = [trial for trial in record.trials if trial.state != "failed"]
        known = measured_now | {trial.plan.hash for trial in tried}
        labels = {(trial.phase, trial.label) for trial in tried}
        while self._planned:
            proposal = self._planned.pop(0)()
            done = (proposal.phase, proposal.label) in labels  # of the search that is resumed
            if not done and proposal.plan.hash not in known:
                return proposal
        made = [trial.phase for trial in record.trials if not trial.cut_off]
        turn = sum(phase not in PLANNED for phase in (*running, *made))
        before = len(made) + len(measured_now)
        if turn % SWAP_EVERY == SWAP_EVERY - 1:
            return self._swapped(record, turn, known) or self._from_knobs(
                record, turn, before, known
            )
        return self._from_knobs(record, turn, before, known) or self._swapped(record, turn, known)

    def _from_knobs(
        self, record: StudyRecord, turn: int, before: int, known: set[str]
    ) -> Proposal | None:
        """The first of some draws that gives a plan which is not known."""
        front = [trial for trial in _front(record) if meets(record, trial)]
        # Under a limit of latency alone, as many bytes as it takes are the first thing to try.
        limits = record.limits
        widest = limits.latency_ms is None or limits.asks_quality or turn % 2
        target = self.proposer.target(front if widest else [])
        if limits.asks_quality:
            target = min(LADDER[turn % len(LADDER)] * target, self.proposer.most_bytes)
        # Without a budget, or under a quality, the target moves, and the allocation there is as
        # good a guess as any.
        usual = [Knobs()] if turn % 2 else []
        for knobs in chain(usual, self.sampler.proposals(before, DRAWS)):
            proposal = self.proposer.from_knobs(knobs, target)
            if proposal.plan.hash not in known:
                return proposal
        return None

    def _swapped(self, record: StudyRecord, turn: int, known: set[str]) -> Proposal | None:
        """A neighbour of a plan that is worth it; see ``_to_swap``."""
        ours = tuple(trial for trial in record.trials if trial.phase != BASELINE)
        made = replace(record, trials=ours)
        front = _to_swap(made)
        first = turn // SWAP_EVERY % max(len(front), 1)
        swapped = (self.proposer.swapped(t, known) for t in (*front[first:], *front[:first]))
        return next((proposal for proposal in swapped if proposal is not None), None)


def _to_swap(record: StudyRecord) -> tuple[TrialRecord, ...]:
    """Under a budget the best plan, without one in turn the members of the front.

    Under a target of quality what just misses it, whose neighbours of its size may keep it, and
    what just keeps it.
    """
    if record.limits.asks_quality:
        edge = [each.plan for each in bracket(sightings_of(record)) if each is not None]
        members = tuple(trial for trial in record.complete if trial.plan in edge)
        return tuple(sorted(members, key=lambda trial: trial.bytes)) or _front(record)
    best = best_or_none(record) if record.limits.memory_bytes is not None else None
    return _front(record) if best is None else (best,)


def _front(record: StudyRecord) -> tuple[TrialRecord, ...]:
    """The members of the front; by bytes and loss alone where latency is not limited.

    Measured latencies are never the same twice, and what is tried should be.
    """
    return non_dominated(record.complete, timed=record.limits.latency_ms is not None)
