"""What healing did to a front: how much it regained, and which plans changed places.

Judged by divergence from the dense model, by which trials are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from autocompress.judging.front import front_of
from autocompress.studies.healed_trials import way_of
from autocompress.studies.study import StudyRecord, TrialRecord

MOST_CHANGES = 5  # that are told one by one


@dataclass(frozen=True)
class HealedPair:
    """A trial and what healing made of it.

    Attributes:
        before: the trial.
        after: healed.
        divergence_before: from the dense model, on the report text where both were measured on it.
        divergence_after: the same of the healed trial.
    """

    before: TrialRecord
    after: TrialRecord
    divergence_before: float
    divergence_after: float

    @property
    def trained(self) -> bool:
        """Whether it was trained, or its matrices only refitted."""
        return self.after.healing is not None and self.after.healing.trained

    @property
    def doing(self) -> str:
        """What was done to it, at the beginning of a sentence."""
        return "" if self.after.healing is None else self.after.healing.doing

    @property
    def share(self) -> float:
        """What is left of the divergence."""
        was = self.divergence_before
        return self.divergence_after / was if was > 0 else math.nan


def healed_pairs(study: StudyRecord) -> tuple[HealedPair, ...]:
    """Each trial that was healed, with the best of what came of it, by bytes.

    One that was healed several times, further or in other ways, is one pair.
    """
    best: dict[int, HealedPair] = {}
    for after in study.complete:
        before = first_of(study, after)
        if before is None or before.measurement is None or after.measurement is None:
            continue
        if before.measurement.text != after.measurement.text:
            continue
        was, now = before.measurement.divergence, after.measurement.divergence
        if before.number not in best or now < best[before.number].divergence_after:
            best[before.number] = HealedPair(before, after, was, now)
    return tuple(sorted(best.values(), key=lambda pair: pair.before.bytes))


def first_of(study: StudyRecord, after: TrialRecord) -> TrialRecord | None:
    """The trial that was healed first to become a healed one; ``None`` for one that was not."""
    trials = {trial.number: trial for trial in study.complete}
    before: TrialRecord | None = after
    while before is not None and before.healing is not None:
        before = trials.get(before.healing.of)
    return None if before is after else before


def order_changes(pairs: tuple[HealedPair, ...]) -> tuple[tuple[HealedPair, HealedPair], ...]:
    """Pairs of which the better one before healing is the worse one after it, the winner first.

    Only what was healed in the same way, with the same data and steps, is compared.
    """
    changes = []
    for one, other in combinations(pairs, 2):
        if _way(one) != _way(other):
            continue
        was = one.divergence_before - other.divergence_before
        now = one.divergence_after - other.divergence_after
        if was * now < 0:
            changes.append((one, other) if now < 0 else (other, one))
    return tuple(changes)


def _way(pair: HealedPair) -> str:
    return "" if pair.after.healing is None else way_of(pair.after.healing)


def healing_notes(study: StudyRecord) -> list[str]:
    """Lines about healing for under a table of the front; none where nothing was healed."""
    pairs = healed_pairs(study)
    if not pairs:
        return []
    trained = [pair for pair in pairs if pair.trained]
    fitted = [pair for pair in pairs if not pair.trained]
    lines = [*_shares_left(fitted, "refitted"), *_shares_left(trained, "healed")]
    if fitted and lines and len(fitted) < len(front_of(study.unhealed)):
        lines[0] += " The others are as fitted first; --heal 0 refits the whole front."
    changes, word = order_changes(pairs), study.gauge.divergence
    for winner, loser in changes[:MOST_CHANGES]:
        lines.append(
            f"{winner.doing} changes an order: trial {winner.after.number} (before: "
            f"{winner.before.number}, {word} {winner.divergence_before:.4f}) has a {word} of "
            f"{winner.divergence_after:.4f}, trial {loser.after.number} (before: "
            f"{loser.before.number}, {loser.divergence_before:.4f}) one of "
            f"{loser.divergence_after:.4f}."
        )
    alike = [pair for pair in pairs if [_way(other) for other in pairs].count(_way(pair)) > 1]
    if alike and not changes:
        lines.append(f"{alike[0].doing} changes no order among them.")
    worse = [pair for pair in pairs if pair.divergence_after > pair.divergence_before]
    lines += [
        f"Trial {pair.after.number} is worse than trial {pair.before.number}, which it was made "
        "from, on the report text."
        for pair in worse
    ]
    return lines


def _shares_left(pairs: Sequence[HealedPair], what: str) -> list[str]:
    shares = [pair.share for pair in pairs if math.isfinite(pair.share)]
    if not shares:
        return []
    count = "1 plan was" if len(pairs) == 1 else f"{len(pairs)} plans were"
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    span = low if low == high else f"{low} to {high}"
    return [f"{count} {what}: {span} of the divergence is left."]
