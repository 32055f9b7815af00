"""Print whether healing with an entanglement penalty lets ranks be cut for less.

    python experiments/entanglement.py
    python experiments/entanglement.py --weight 0.2 --steps 300
    python experiments/entanglement.py --forms tensor_train --weight 3 --tolerances 0.02 0.04 0.06
    python experiments/entanglement.py --model DIR --data FILE

All linear layers of the model become two factors, or trains of two cores, at a share of their
parameters; the rest stays dense. They are healed twice on the calibration text, with the same
windows and steps: without the penalty, and with it. Then ranks are cut to the lowest that lose at
most a tolerance of each matrix, for several tolerances.

  bytes      of the linear layers, as a share of those before the cut
  increase       of the log-perplexity on the report text; in the first line before the cut
  at equal   increase with the penalty over the one without it at the same bytes, the latter between
             the two nearest tolerances; below 1 the penalty is worth its price
"""

from __future__ import annotations

import argparse
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from uniform_plans import MethodOf, add_arguments, rank_at, session_of

from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.healing.healer import Healer
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.methods.keep import Keep
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.records import Kind, LayerSpec
from autocompress.requests.healing import HealSettings
from autocompress.session.session import Session
from autocompress.surgery.compressed import Compressed

HEALING_CONTEXT = 256
RANK_STEP = 8


@dataclass(frozen=True)
class Point:
    """A cut: bytes as a share of those before, and the increase of the log-perplexity."""

    tolerance: float
    bytes: float
    increase: float


def two_factors(share: float, spec: LayerSpec) -> Svd:
    return Svd(rank_at(spec, share))


def two_cores(share: float, spec: LayerSpec) -> TensorTrain:
    """The train of two balanced modes a side whose cores hold at most a share of the bytes."""
    most = share * Keep().cost(spec)
    trains = [
        TensorTrain.uniform(spec.shape, order=2, rank=rank)
        for rank in range(RANK_STEP, min(spec.shape) + 1, RANK_STEP)
    ]
    fitting = [train for train in trains if train.cost(spec) <= most]
    return fitting[-1] if fitting else trains[0]


FORMS: dict[str, Callable[[float, LayerSpec], Svd | TensorTrain]] = {
    "svd": two_factors,
    "tensor_train": two_cores,
}


def healed_and_cut(
    session: Session,
    method_of: MethodOf,
    settings: HealSettings,
    tolerances: Sequence[float],
    text: ScoredText,
) -> list[Point]:
    """Heal, and cut at each tolerance; the first point is before any cut."""
    layers = session.workbench.inventory.layers
    specs = tuple(spec for spec in layers if spec.kind is not Kind.EMBEDDING)
    plan = Plan.of({spec.name: method_of(spec) for spec in specs})
    student = Student(session.workbench, plan, session.builder.build)
    windows = Windows(session.selection_ids, HEALING_CONTEXT)
    healer = Healer(
        session.workbench.model,
        student,
        session.calibration_ids,
        windows,
        settings,
        metrics=session.metrics,
    )
    numbers, dense = healer.run().weights, text.teacher.score.loss
    points = []
    for tolerance in (0.0, *tolerances):
        kept = Compressed(plan, numbers)
        if tolerance:
            cut = shrink(plan, numbers, specs, session.metrics, tolerance)
            kept = Compressed(cut.plan, cut.weights)
        with session.workbench.applied(kept, session.builder.build) as model:
            increase = score(model, text.windows, text.teacher).loss - dense
        points.append(
            Point(tolerance, kept.plan.layer_bytes(specs) / plan.layer_bytes(specs), increase)
        )
    return points


def increase_at(points: Sequence[Point], share: float) -> float:
    """Increase at a share of the bytes, linear between two cuts; the last one's beyond them."""
    rising = sorted(points, key=lambda point: point.bytes)
    place = bisect_left([point.bytes for point in rising], share)
    if place == 0 or place == len(rising):
        return rising[min(place, len(rising) - 1)].increase
    low, high = rising[place - 1], rising[place]
    part = (share - low.bytes) / (high.bytes - low.bytes)
    return low.increase + part * (high.increase - low.increase)


def print_table(name: str, without: Sequence[Point], asked: Sequence[Point]) -> None:
    print(f"\n{name:<14}{'without penalty':^20}{'with penalty':^20}{'at equal':>10}")
    print(f"{'tolerance':<14}{'bytes':>9}{'increase':>11}{'bytes':>9}{'increase':>11}{'bytes':>10}")
    for plain, point in zip(without, asked, strict=True):
        ratio = point.increase / increase_at(without, point.bytes)
        label = f"{plain.tolerance:.3f}" if plain.tolerance else "no cut"
        print(
            f"{label:<14}{plain.bytes:>9.3f}{plain.increase:>11.4f}"
            f"{point.bytes:>9.3f}{point.increase:>11.4f}{ratio:>10.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["svd"])
    parser.add_argument("--share", type=float, default=0.5, help="of the parameters kept")
    parser.add_argument("--alpha", type=float, default=0.25, help="order of the Rényi entropy")
    parser.add_argument("--weight", type=float, default=0.05, help="of a nat at one bond")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--tolerances", nargs="*", type=float, default=[0.005, 0.01, 0.02])
    add_arguments(parser)
    args = parser.parse_args()
    session = session_of(args)
    text = session.scored_text("report")
    penalties = (Penalty(alpha=args.alpha, weight=args.weight),)
    for name in args.forms:
        points = [
            healed_and_cut(
                session,
                partial(FORMS[name], args.share),
                HealSettings(steps=args.steps, tokens=args.tokens, penalties=chosen),
                args.tolerances,
                text,
            )
            for chosen in ((), penalties)
        ]
        print_table(name, *points)


if __name__ == "__main__":
    main()
