"""What each method is good for in a study: where it is on the front, where it is beaten, by what.

Plans are compared as measured on the selection text, by bytes and loss alone; how much slower the
better one is, is said beside it. Single matrices are compared by the menu's predicted damages: the
measured swaps correct a matrix's damages by their size, which tells no methods apart.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from autocompress.calibration.menu import Menu
from autocompress.errors import StudyError
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.search.dominance import latency, selection_loss
from autocompress.search.front import finite, front_of
from autocompress.search.stored_menu import read_menu
from autocompress.search.study import HAND_WRITTEN, StudyRecord, TrialRecord


@dataclass(frozen=True)
class Offer:
    """One option of a matrix, as far as methods are compared: label, stored bytes, damage."""

    label: str
    bytes: int
    damage: float


@dataclass(frozen=True)
class Use:
    """What one member of the front stores by a method.

    Attributes:
        trial: number of the member.
        ratio: its compression ratio.
        matrices: how many matrices take the method.
        share: their share of the bytes of all compressible matrices under the plan.
    """

    trial: int
    ratio: float
    matrices: int
    share: float


@dataclass(frozen=True)
class Rival:
    """A method that beats options of another on the same matrix.

    Attributes:
        label: the rival.
        options: how many options it beats more clearly than any other method does.
        factor: median of their damage over the rival's, at no more bytes.
    """

    label: str
    options: int
    factor: float


@dataclass(frozen=True)
class BeatenPlan:
    """A uniform plan with another trial that is as small and loses less.

    Attributes:
        trial: number of the uniform plan's trial.
        label: what it is called.
        by: number of the better trial: that of least bytes times rise.
        by_label: what that is called.
        bytes_share: its bytes over the uniform plan's, at most 1.
        rise_share: its rise over the uniform plan's, below 1.
        latency_share: its time of a token over the uniform plan's; ``None`` if one was not timed.
    """

    trial: int
    label: str
    by: int
    by_label: str
    bytes_share: float
    rise_share: float
    latency_share: float | None


@dataclass(frozen=True)
class MethodReport:
    """One method in one study; see the parts.

    Attributes:
        label: the method, with its bits where they tell.
        uses: by the members of the front, smallest first; empty when none uses it.
        share: mean share of the bytes over all members of the front.
        options: how many options the menu has of it; 0 without a menu.
        beaten_options: how many of them another method beats.
        matrices: how many matrices have options of it.
        unbeaten_matrices: on how many of those no other method beats all of its options.
        rivals: what beats it, the most frequent first.
        uniform_plans: how many uniform plans of it were measured.
        beaten_plans: those of them that another trial beats.
    """

    label: str
    uses: tuple[Use, ...]
    share: float
    options: int
    beaten_options: int
    matrices: int
    unbeaten_matrices: int
    rivals: tuple[Rival, ...]
    uniform_plans: int
    beaten_plans: tuple[BeatenPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        plain = asdict(self)
        for rival in plain["rivals"]:
            rival["factor"] = finite(rival["factor"])
        return plain


def method_label(method: Method) -> str:
    """The method with its bits where they tell: ``3 bit trellis``, ``svd int8``, ``tucker``."""
    if method.form != method.name or method.code_bits is None:
        return method.form.replace("_", " ")
    return f"{method.name.replace('_', ' ')} int{method.code_bits}"


def offers_of(menu: Menu) -> dict[str, tuple[Offer, ...]]:
    """The offers of every matrix of a menu, by layer name, with their predicted damages."""
    return {
        layer.spec.name: tuple(
            Offer(method_label(option.method), option.file_bytes, option.damage)
            for option in layer.options
        )
        for layer in menu.layers
    }


def stored_offers(study: StudyRecord) -> dict[str, tuple[Offer, ...]] | None:
    """The offers of the menu in a study's run folder; ``None`` where there is none to be read."""
    try:
        return offers_of(read_menu(study).menu)
    except StudyError:
        return None


def report_methods(
    study: StudyRecord, offers: Mapping[str, Sequence[Offer]] | None = None
) -> tuple[MethodReport, ...]:
    """Report on every method that the study's plans or the menu hold, most of the front first.

    Args:
        study: the study.
        offers: the menu, as ``offers_of`` gives it; without it plans are compared only.
    """
    front = front_of(study)
    uses = _uses(study, front)
    uniform, beaten = _uniform_plans(study)
    tally = _Tally.of((offers or {}).values())
    labels = {*uses, *uniform, *tally.options}
    labels |= {method_label(method) for trial in study.complete for method in trial.plan.values()}
    reports = [
        MethodReport(
            label,
            uses.get(label, ()),
            sum(use.share for use in uses.get(label, ())) / max(len(front), 1),
            tally.options[label],
            sum(map(len, tally.factors[label].values())),
            tally.matrices[label],
            tally.unbeaten[label],
            tally.rivals(label),
            uniform[label],
            tuple(beaten[label]),
        )
        for label in labels
    ]
    return tuple(sorted(reports, key=lambda report: (-report.share, report.label)))


def _uses(study: StudyRecord, front: Iterable[TrialRecord]) -> dict[str, tuple[Use, ...]]:
    uses: dict[str, tuple[Use, ...]] = {}
    for trial in front:
        sizes: dict[str, list[int]] = defaultdict(list)
        for spec in study.specs:
            method = trial.plan.get(spec.name, Keep())
            sizes[method_label(method)].append(method.cost(spec))
        total = sum(map(sum, sizes.values()))
        for label, each in sizes.items():
            use = Use(trial.number, study.dense_bytes / trial.bytes, len(each), sum(each) / total)
            uses[label] = (*uses.get(label, ()), use)
    return uses


def _uniform_plans(study: StudyRecord) -> tuple[Counter[str], dict[str, list[BeatenPlan]]]:
    """How many uniform plans each method has, and those that another trial beats."""
    counts: Counter[str] = Counter()
    beaten: dict[str, list[BeatenPlan]] = defaultdict(list)
    for trial in study.complete:
        changed = Counter(
            method_label(method) for method in trial.plan.values() if method != Keep()
        )
        if trial.phase != HAND_WRITTEN or not changed:
            continue
        label = changed.most_common(1)[0][0]
        counts[label] += 1
        winner = _winner_over(study, trial)
        if winner is not None:
            beaten[label].append(winner)
    return counts, beaten


def _winner_over(study: StudyRecord, trial: TrialRecord) -> BeatenPlan | None:
    dense = math.log(study.dense_selection.perplexity)
    own = selection_loss(trial) - dense
    better = [
        _beaten(trial, other, max(selection_loss(other) - dense, 0.0) / own)
        for other in study.complete
        if own > 0 and other.bytes <= trial.bytes and selection_loss(other) - dense < own
    ]
    return min(better, key=lambda each: each.bytes_share * each.rise_share, default=None)


def _beaten(trial: TrialRecord, winner: TrialRecord, rise_share: float) -> BeatenPlan:
    own, its = latency(trial), latency(winner)
    return BeatenPlan(
        trial.number,
        trial.label,
        winner.number,
        winner.label,
        winner.bytes / trial.bytes,
        rise_share,
        None if own is None or its is None else its / own,
    )


@dataclass(frozen=True)
class _Tally:
    """Counts over the matrices of a menu, by label; factors by label and rival."""

    options: Counter[str]
    matrices: Counter[str]
    unbeaten: Counter[str]
    factors: dict[str, dict[str, list[float]]]

    @classmethod
    def of(cls, menus: Iterable[Sequence[Offer]]) -> _Tally:
        tally = cls(Counter(), Counter(), Counter(), defaultdict(lambda: defaultdict(list)))
        for offers in menus:
            tally._count(offers)
        return tally

    def _count(self, offers: Sequence[Offer]) -> None:
        """Go through a matrix's offers by rising bytes, with each label's least damage so far."""
        least: dict[str, float] = {}
        unbeaten: set[str] = set()
        by_bytes = sorted(offers, key=lambda offer: offer.bytes)
        for _, same in groupby(by_bytes, key=lambda offer: offer.bytes):
            group = list(same)
            for offer in group:
                least[offer.label] = min(offer.damage, least.get(offer.label, math.inf))
            for offer in group:
                others = (
                    (damage, label) for label, damage in least.items() if label != offer.label
                )
                damage, rival = min(others, default=(math.inf, ""))
                if damage < offer.damage:
                    factor = offer.damage / damage if damage > 0 else math.inf
                    self.factors[offer.label][rival].append(factor)
                else:
                    unbeaten.add(offer.label)
        self.options.update(offer.label for offer in offers)
        self.matrices.update({offer.label for offer in offers})
        self.unbeaten.update(unbeaten)

    def rivals(self, label: str) -> tuple[Rival, ...]:
        """What beats a method, the most frequent first."""
        found = [
            Rival(rival, len(factors), statistics.median(factors))
            for rival, factors in self.factors[label].items()
        ]
        return tuple(sorted(found, key=lambda rival: (-rival.options, rival.label)))
