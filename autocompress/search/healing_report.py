"""What healing did to a front: how much it regained, and which plans changed places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from autocompress.search.against_dense import rise
from autocompress.search.healed_trials import way_of
from autocompress.search.study import StudyRecord, TrialRecord

MOST_CHANGES = 5  # that are told one by one


@dataclass(frozen=True)
class HealedPair:
    """A trial and what healing made of it.

    Attributes:
        before: the trial.
        after: healed.
        rise_before: of log-perplexity, on the report text where both were measured on it.
        rise_after: the same of the healed trial.
    """

    before: TrialRecord
    after: TrialRecord
    rise_before: float
    rise_after: float

    @property
    def trained(self) -> bool:
        """Whether it was trained, or its matrices only fitted anew."""
        return self.after.healing is not None and self.after.healing.trained

    @property
    def share(self) -> float:
        """What is left of the rise."""
        return self.rise_after / self.rise_before if self.rise_before > 0 else math.nan


def healed_pairs(study: StudyRecord) -> tuple[HealedPair, ...]:
    """Each trial that was healed, with the best of what came of it, by bytes.

    One that was healed several times, further or in other ways, is one pair.
    """
    trials = {trial.number: trial for trial in study.complete}
    best: dict[int, HealedPair] = {}
    for after in study.complete:
        before = _first_of(after, trials)
        if before is None or before.measurement is None or after.measurement is None:
            continue
        if before.measurement.text != after.measurement.text:
            continue
        pair = HealedPair(before, after, rise(study, before), rise(study, after))
        if before.number not in best or pair.rise_after < best[before.number].rise_after:
            best[before.number] = pair
    return tuple(sorted(best.values(), key=lambda pair: pair.before.bytes))


def _first_of(after: TrialRecord, trials: Mapping[int, TrialRecord]) -> TrialRecord | None:
    """The trial that was healed first to become a healed one; ``None`` for one that was not."""
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
        was = one.rise_before - other.rise_before
        now = one.rise_after - other.rise_after
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
    lines = [*_shares_left(fitted, "fitted anew"), *_shares_left(trained, "healed")]
    what = "Healing" if trained else "Fitting anew"
    for winner, loser in order_changes(pairs)[:MOST_CHANGES]:
        lines.append(
            f"{what} changes an order: trial {winner.after.number} (before: "
            f"{winner.before.number}, rise {winner.rise_before:.4f}) has a rise of "
            f"{winner.rise_after:.4f}, trial {loser.after.number} (before: "
            f"{loser.before.number}, {loser.rise_before:.4f}) one of {loser.rise_after:.4f}."
        )
    if len(pairs) > 1 and not order_changes(pairs):
        lines.append(f"{what} changes no order among them.")
    worse = [pair for pair in pairs if pair.rise_after > pair.rise_before]
    lines += [
        f"Trial {pair.after.number} is worse than trial {pair.before.number}, which it was healed "
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
    return [f"{count} {what}: of the rise of log-perplexity, {span} is left."]
