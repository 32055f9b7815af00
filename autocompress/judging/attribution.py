"""What each group of matrices of a plan contributes to its saving and to its loss increase.

One group at a time is put back to dense while the rest stays as the plan stores it. What is then
better is the loss increase of that group, what is then larger is what it had saved. Savings add up
to that of the plan; loss increases need not: what groups do to one another (errors that cancel, or
that grow in later layers) is counted in none of them or in several. The difference is reported as
interaction. Healed weights are trained around one another, those outside the groups (norms, biases)
included, so that there is more of it in a healed plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.errors import ConfigurationError
from autocompress.evaluation.scoring import Score
from autocompress.judging.bootstrap import Interval, difference_interval
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import Advance
from autocompress.records import Gauge, LayerSpec
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.placement import home_of, prefix_of
from autocompress.surgery.workbench import Workbench

ScorePlan = Callable[[Plan], Score]
GROUPINGS = ("method", "part", "depth", "role", "block", "layer")
USUAL_GROUPINGS = ("method", "part", "depth")
THIRDS = 3


@dataclass(frozen=True)
class Lost:
    """What a model loses against the dense one.

    Attributes:
        increase: of the loss.
        divergence: from the dense model.
    """

    increase: float
    divergence: float

    @classmethod
    def of(cls, scored: Score, dense: Score) -> Lost:
        """The loss increase that a score shows, on the windows of the dense model's score."""
        return cls(scored.loss - dense.loss, scored.divergence)

    def __sub__(self, other: Lost) -> Lost:
        return Lost(self.increase - other.increase, self.divergence - other.divergence)


@dataclass(frozen=True)
class LayerGroup:
    """Matrices that are put back to dense together.

    Attributes:
        by: what they have in common: one of ``GROUPINGS``.
        name: which of it: ``svd``, ``attention``, ``blocks 0 to 1``.
        specs: the matrices, all of them compressed by the plan.
    """

    by: str
    name: str
    specs: tuple[LayerSpec, ...]


@dataclass(frozen=True)
class Contribution:
    """What one group contributes.

    Attributes:
        by: see ``LayerGroup``.
        group: its name.
        layers: how many matrices it has.
        bytes_saved: stored bytes that the plan saves on them.
        saved_share: that as a share of all that the plan saves.
        without: what the plan loses when the group is dense.
        lost: what it loses less then; negative where the group makes up for others.
        interval: where the increase of ``lost`` lies, from the windows drawn again in pairs;
            ``None`` with too few windows.
    """

    by: str
    group: str
    layers: int
    bytes_saved: int
    saved_share: float
    without: Lost
    lost: Lost
    interval: Interval | None


@dataclass(frozen=True)
class Attribution:
    """What the groups of a plan contribute, on one text.

    Attributes:
        total: what the plan loses.
        bytes_saved: stored bytes that it saves.
        tokens: predicted tokens that the loss increases are means over.
        contributions: of each group, those of one grouping after the other.
        gauge: the words for the loss increases.
    """

    total: Lost
    bytes_saved: int
    tokens: int
    contributions: tuple[Contribution, ...]
    gauge: Gauge

    @property
    def groupings(self) -> tuple[str, ...]:
        """What the matrices were grouped by."""
        return tuple(dict.fromkeys(each.by for each in self.contributions))

    def by(self, grouping: str) -> tuple[Contribution, ...]:
        """The groups of one grouping, in model order."""
        return tuple(each for each in self.contributions if each.by == grouping)

    def interaction(self, grouping: str) -> Lost:
        """What the groups leave of the total loss increase; negative if they come to more."""
        rest = self.total
        for each in self.by(grouping):
            rest -= each.lost
        return rest

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        plain = {
            "total": asdict(self.total),
            "bytes_saved": self.bytes_saved,
            "tokens": self.tokens,
            "groups": [
                asdict(each) | {"interval": each.interval and list(each.interval)}
                for each in self.contributions
            ],
            "interaction": {by: asdict(self.interaction(by)) for by in self.groupings},
        }
        return self.gauge.named(plain)


def groups_of(
    plan: Plan, specs: Sequence[LayerSpec], by: Sequence[str] = USUAL_GROUPINGS
) -> tuple[LayerGroup, ...]:
    """Group the matrices that a plan compresses.

    Args:
        plan: the plan.
        specs: the matrices of the model.
        by: ``method`` (its form, codes by their bits), ``part`` (attention, mlp, embedding),
            ``depth`` (thirds of the blocks), ``role``, ``block`` or ``layer`` (each alone).

    Raises:
        ConfigurationError: an unknown grouping, or a plan that keeps every matrix.
    """
    unknown = [grouping for grouping in by if grouping not in GROUPINGS]
    if unknown or not by:
        got = ", ".join(map(repr, unknown)) or "nothing"
        raise ConfigurationError("--by is not understood", got=got, wanted=", ".join(GROUPINGS))
    compressed = [spec for spec in specs if plan.get(spec.name, Keep()) != Keep()]
    if not compressed:
        raise ConfigurationError(
            "there is nothing to attribute: the plan keeps every matrix",
            hint="Name another trial.",
        )
    blocks = 1 + max((spec.depth for spec in specs if spec.depth is not None), default=0)
    groups = []
    for grouping in dict.fromkeys(by):
        members: dict[str, list[LayerSpec]] = {}
        for spec in compressed:
            members.setdefault(_name(grouping, spec, plan[spec.name], blocks), []).append(spec)
        groups += [LayerGroup(grouping, name, tuple(found)) for name, found in members.items()]
    return tuple(groups)


def _name(grouping: str, spec: LayerSpec, method: Method, blocks: int) -> str:
    """Which group of a grouping a matrix is in."""
    if grouping == "method":
        return method.form
    if grouping == "part":
        return spec.role.part
    if grouping == "role":
        return spec.role.value
    if grouping == "layer":
        return spec.name
    if spec.depth is None:
        return "outside the blocks"
    return f"block {spec.depth}" if grouping == "block" else _third(spec.depth, blocks)


def _third(depth: int, blocks: int) -> str:
    """The third of the blocks that a block is in, by its first and last block."""
    third = depth * THIRDS // blocks
    inside = [each for each in range(blocks) if each * THIRDS // blocks == third]
    first, last = inside[0], inside[-1]
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def without(plan: Plan, group: LayerGroup) -> Plan:
    """The plan with a group put back to dense."""
    return Plan.of({**plan, **{spec.name: Keep() for spec in group.specs}})


def put_back(ablated: Plan, compressed: Compressed, workbench: Workbench) -> Compressed:
    """A plan with matrices put back to dense, with the stored weights that have a place then.

    Args:
        ablated: the plan with matrices put back.
        compressed: the whole plan, with its weights.
        workbench: holds the dense model.
    """
    stored = {name for name, method in ablated.items() if method != Keep()}
    taken_apart = {home_of(workbench.model, name) for name in stored}
    gone = []
    for spec in workbench.inventory.layers:
        home = home_of(workbench.model, spec.name)
        back = spec.name not in stored and compressed.plan.get(spec.name, Keep()) != Keep()
        if back or (home != spec.name and home not in taken_apart):  # an expert, in its stack
            gone.append(prefix_of(spec))
    kept = {n: t for n, t in compressed.weights.items() if not n.startswith(tuple(gone))}
    return Compressed(ablated, kept)


def attribute(
    plan: Plan,
    inventory: Inventory,
    score: ScorePlan,
    dense: Score,
    groups: Sequence[LayerGroup],
    gauge: Gauge,
    advance: Advance = lambda _steps: None,
) -> Attribution:
    """Put one group after another back to dense, and score what is left.

    Args:
        plan: the plan.
        inventory: of the model.
        score: scores a plan, on the same windows each time.
        dense: the dense model's score on them.
        groups: see ``groups_of``.
        gauge: the words for the loss increases.
        advance: called with the number of plans scored since, of one more than there are groups.
    """
    known: dict[str, Score] = {}

    def scored(chosen: Plan) -> Score:
        if chosen.hash not in known:
            known[chosen.hash] = score(chosen)
        advance(1)
        return known[chosen.hash]

    whole = scored(plan)
    total, size = Lost.of(whole, dense), inventory.plan_bytes(plan)
    saved = inventory.dense_bytes - size
    contributions = []
    for group in groups:
        ablated = without(plan, group)
        rest = scored(ablated)
        loss, group_saved = Lost.of(rest, dense), inventory.plan_bytes(ablated) - size
        contributions.append(
            Contribution(
                group.by,
                group.name,
                len(group.specs),
                group_saved,
                group_saved / saved if saved else 0.0,
                loss,
                total - loss,
                difference_interval(whole.windows, rest.windows),
            )
        )
    return Attribution(total, saved, whole.tokens, tuple(contributions), gauge)
