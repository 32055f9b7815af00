"""What each method is good for in a study: where it is on the front, where it is beaten, by what.

Plans are compared as measured on the selection text, by bytes and divergence alone, as trials are
ranked; how much slower the better one is, is said beside it. Single matrices are compared in
``method_rivals.py``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autocompress.judging.dominance import latency, ranking_loss
from autocompress.judging.front import finite, front_of
from autocompress.judging.method_rivals import Offer, Rival, Tally, method_label
from autocompress.methods.keep import Keep
from autocompress.records import Gauge
from autocompress.studies.study import BASELINE, StudyRecord, TrialRecord


@dataclass(frozen=True)
class MethodUse:
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
class BeatenPlan:
    """A uniform plan with another trial that is as small and loses less.

    Attributes:
        trial: number of the uniform plan's trial.
        label: what it is called.
        by: number of the better trial: that of least bytes times increase of the loss.
        by_label: what that is called.
        bytes_share: its bytes over the uniform plan's, at most 1.
        increase_share: its increase of the loss over the uniform plan's, below 1; the loss is what
            trials are ranked by, so it is the share of the divergence.
        latency_share: its time of a token over the uniform plan's; ``None`` if one was not timed.
    """

    trial: int
    label: str
    by: int
    by_label: str
    bytes_share: float
    increase_share: float
    latency_share: float | None


@dataclass(frozen=True)
class StoppedPlan:
    """A uniform plan that was given up on the first windows: its trial, and what they showed."""

    trial: int
    label: str
    tokens: int
    divergence: float


@dataclass(frozen=True)
class MethodReport:
    """One method in one study; see the parts.

    Attributes:
        label: the method, with its bits where they tell.
        uses: by the members of the front, smallest first; empty when none uses it.
        share: mean share of the bytes over all members of the front.
        options: how many options the menu has of it; 0 without a menu.
        fitted_options: how many of them were fitted; the loss increases of the others are
            predicted.
        beaten_options: how many of them another method beats.
        matrices: how many matrices have options of it.
        unbeaten_matrices: on how many of those no other method beats all of its options.
        rivals: what beats it, the most frequent first.
        uniform_plans: how many uniform plans of it were measured.
        beaten_plans: those of them that another trial beats.
        stopped_plans: uniform plans that were clearly beaten before they were measured.
    """

    label: str
    uses: tuple[MethodUse, ...]
    share: float
    options: int
    fitted_options: int
    beaten_options: int
    matrices: int
    unbeaten_matrices: int
    rivals: tuple[Rival, ...]
    uniform_plans: int
    beaten_plans: tuple[BeatenPlan, ...]
    stopped_plans: tuple[StoppedPlan, ...]

    def to_dict(self, gauge: Gauge) -> dict[str, Any]:
        """Plain mapping for JSON, in the words of the study."""
        plain = asdict(self)
        for rival in plain["rivals"]:
            rival["factor"] = finite(rival["factor"])
        for plan in plain["stopped_plans"]:
            plan["divergence"] = finite(plan["divergence"])
        return gauge.named(plain)


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
    stopped = _stopped_plans(study)
    tally = Tally.of((offers or {}).values())
    labels = {*uses, *uniform, *stopped, *tally.options}
    labels |= {method_label(method) for trial in study.complete for method in trial.plan.values()}
    reports = [
        MethodReport(
            label,
            uses.get(label, ()),
            sum(use.share for use in uses.get(label, ())) / max(len(front), 1),
            tally.options[label],
            tally.fitted[label],
            sum(map(len, tally.factors[label].values())),
            tally.matrices[label],
            tally.unbeaten[label],
            tally.rivals(label),
            uniform[label],
            tuple(beaten[label]),
            tuple(stopped[label]),
        )
        for label in labels
    ]
    return tuple(sorted(reports, key=lambda report: (-report.share, report.label)))


def _uses(study: StudyRecord, front: Iterable[TrialRecord]) -> dict[str, tuple[MethodUse, ...]]:
    uses: dict[str, tuple[MethodUse, ...]] = {}
    for trial in front:
        sizes: dict[str, list[int]] = defaultdict(list)
        for spec in study.specs:
            method = trial.plan.get(spec.name, Keep())
            sizes[method_label(method)].append(method.cost(spec))
        total = sum(map(sum, sizes.values()))
        for label, each in sizes.items():
            use = MethodUse(
                trial.number, study.dense_bytes / trial.bytes, len(each), sum(each) / total
            )
            uses[label] = (*uses.get(label, ()), use)
    return uses


def _uniform_plans(study: StudyRecord) -> tuple[Counter[str], dict[str, list[BeatenPlan]]]:
    """How many uniform plans each method has, and those that another trial beats.

    As they were fitted: of healed plans the healing would be what beats.
    """
    study = study.unhealed
    counts: Counter[str] = Counter()
    beaten: dict[str, list[BeatenPlan]] = defaultdict(list)
    for trial in study.complete:
        label = _uniform_label(trial)
        if label is None:
            continue
        counts[label] += 1
        winner = _winner_over(study, trial)
        if winner is not None:
            beaten[label].append(winner)
    return counts, beaten


def _stopped_plans(study: StudyRecord) -> dict[str, list[StoppedPlan]]:
    stopped: dict[str, list[StoppedPlan]] = defaultdict(list)
    for trial in study.trials:
        label, seen = _uniform_label(trial), trial.partial
        if label is not None and trial.state == "stopped" and seen is not None:
            plan = StoppedPlan(trial.number, trial.label, seen.tokens, seen.divergence)
            stopped[label].append(plan)
    return stopped


def _uniform_label(trial: TrialRecord) -> str | None:
    """The method of a uniform baseline: that of most matrices that it does not keep."""
    changed = Counter(method_label(method) for method in trial.plan.values() if method != Keep())
    return changed.most_common(1)[0][0] if trial.phase == BASELINE and changed else None


def _winner_over(study: StudyRecord, trial: TrialRecord) -> BeatenPlan | None:
    loss = ranking_loss(study.complete)
    dense = loss(replace(trial, selection=study.dense_selection))
    own = loss(trial) - dense
    better = [
        _beaten(trial, other, max(loss(other) - dense, 0.0) / own)
        for other in study.complete
        if own > 0 and other.bytes <= trial.bytes and loss(other) - dense < own
    ]
    return min(better, key=lambda each: each.bytes_share * each.increase_share, default=None)


def _beaten(trial: TrialRecord, winner: TrialRecord, increase_share: float) -> BeatenPlan:
    own, its = latency(trial), latency(winner)
    return BeatenPlan(
        trial.number,
        trial.label,
        winner.number,
        winner.label,
        winner.bytes / trial.bytes,
        increase_share,
        None if own is None or its is None else its / own,
    )
