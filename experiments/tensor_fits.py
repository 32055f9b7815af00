"""Print what fitting tensor decompositions in the loss's metric gains over the plain ones.

    python experiments/tensor_fits.py
    python experiments/tensor_fits.py --share 0.25 --forms tensor_train --orders 2 3
    python experiments/tensor_fits.py --model DIR --data FILE

All linear layers of the model are stored as tensor trains, Tucker or CP decompositions that take a
share of their parameters; the same ranks and modes, so the same bytes, each time. The predicted
loss increase is summed over the layers, in nats a token:

  plain     the decomposition of the matrix itself (TT-SVD, HOSVD, alternating least squares)
  start     the better of that and the decomposition in coordinates that whiten the metric
  refined   what the method stores: the start, improved against the loss increase from statistics
  alone

Then the increase of the log-perplexity on the report text, plain and refined, and their ratio. The
last row is the two-sided SVD at the same bytes, for comparison.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.core_fitting import best_start, unwhitened, whitened_target
from autocompress.methods.cp import Cp
from autocompress.methods.folding import Modes, Split
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.tensors.cp import CpForm, cp_rank_limit
from autocompress.numerics.tensors.tensor_fit import TensorForm, pad_to
from autocompress.numerics.tensors.tensor_train import TrainForm
from autocompress.numerics.tensors.tucker import TuckerForm
from autocompress.records import Kind, LayerSpec
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session, open_session

TARGET = 0.7
STEPS = 400  # fractions of the largest ranks that are tried to meet the bytes


@dataclass(frozen=True)
class Fits:
    """One layer's matrices ``[out, in]``, by what was done, their method, and seconds per fit."""

    method: Method
    matrices: dict[str, Tensor]
    seconds: float


def method_of(kind: str, modes: Modes, fraction: float) -> Method:
    """The method of a kind whose ranks are a fraction of the largest."""

    def share(limits: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, round(fraction * limit)) for limit in limits)

    if kind == "tensor_train":
        return TensorTrain(share(modes.bonds), modes.rows, modes.columns).feasible()
    if kind == "tucker":
        return Tucker(share(modes.sides), modes.rows, modes.columns).feasible()
    limit = cp_rank_limit(modes.rows + modes.columns)
    return Cp(share((limit,))[0], modes.rows, modes.columns)


def form_of(method: Method) -> TensorForm:
    if isinstance(method, TensorTrain):
        return TrainForm(method.ranks, method.out_modes, method.in_modes)
    if isinstance(method, Tucker):
        return TuckerForm(method.ranks, method.out_modes, method.in_modes)
    assert isinstance(method, Cp)
    return CpForm((method.rank,), method.out_modes, method.in_modes)


def largest_within(spec: LayerSpec, share: float, make: Callable[[float], Method]) -> Method:
    """The method of most bytes that keeps to a share of the kept matrix's."""
    most = share * Keep().cost(spec)
    steps = range(1, STEPS + 1)
    fitting = bisect_right(steps, most, key=lambda step: make(step / STEPS).cost(spec))
    return make(max(fitting, 1) / STEPS)


def fits_of(problem: MatrixProblem, method: Method) -> Fits:
    """The matrix as the plain decomposition, the start and the refined fit have it."""
    form = form_of(method)
    target = whitened_target(problem, form.out_modes, form.in_modes)

    def trimmed(cores: list[Tensor]) -> Tensor:
        out_features, in_features = problem.spec.shape
        return form.multiply_out(cores)[:out_features, :in_features]

    plain = form.decompose(pad_to(problem.weight32, form.out_modes, form.in_modes))
    start = unwhitened(form, best_start(form, problem.weight32, target), target)
    clock = time.perf_counter()
    layer = method.build(problem)
    seconds = time.perf_counter() - clock
    matrices = {"plain": trimmed(plain), "start": trimmed(start), "refined": layer.to_dense()}
    return Fits(method, matrices, seconds)


def increase(
    session: Session, text: ScoredText, dense: float, stored: dict[str, Fits], key: str
) -> float:
    """Increase of the log-perplexity when the layers hold the matrices of one key."""

    def build(name: str, _: Method) -> CompressedMatrix:
        problem = session.workbench.problem(name)
        layer = Keep().build(problem)
        # Assigned: the kept layer shares its tensor with the model.
        layer.load_state_dict({"weight": stored[name].matrices[key]}, strict=False, assign=True)
        return layer

    plan = Plan.of({name: fits.method for name, fits in stored.items()})
    measured = Evaluator(session.workbench, build).measure(plan, text, latency=False)
    return math.log(measured.figure / dense)


def problems(session: Session) -> Iterator[MatrixProblem]:
    for spec in session.workbench.inventory.layers:
        if spec.kind is not Kind.EMBEDDING:
            yield session.workbench.problem(spec.name, session.metrics[spec.name])


def print_row(
    label: str, session: Session, text: ScoredText, dense: float, stored: dict[str, Fits]
) -> None:
    loss_increases = {
        key: sum(
            session.metrics[name].loss_increase(
                fits.matrices[key] - session.workbench.problem(name).weight32
            )
            for name, fits in stored.items()
        )
        for key in ("plain", "start", "refined")
    }
    increases = {key: increase(session, text, dense, stored, key) for key in ("plain", "refined")}
    seconds = sum(fits.seconds for fits in stored.values())
    print(
        f"{label:<28}"
        + "".join(f"{loss_increases[key]:>9.4f}" for key in loss_increases)
        + f"{loss_increases['refined'] / loss_increases['plain']:>7.2f}"
        + f"{increases['plain']:>10.4f}{increases['refined']:>9.4f}"
        + f"{increases['refined'] / increases['plain']:>7.2f}{seconds:>8.1f}",
        flush=True,
    )


def print_svd(share: float, session: Session, text: ScoredText, dense: float) -> None:
    stored = {}
    for problem in problems(session):
        side = min(problem.spec.shape)
        method = largest_within(
            problem.spec, share, lambda part, side=side: Svd(max(1, round(part * side)))
        )
        clock = time.perf_counter()
        matrix = method.build(problem).to_dense()
        stored[problem.spec.name] = Fits(method, {"refined": matrix}, time.perf_counter() - clock)
    loss_increase = sum(
        session.metrics[name].loss_increase(
            fits.matrices["refined"] - session.workbench.problem(name).weight32
        )
        for name, fits in stored.items()
    )
    rose = increase(session, text, dense, stored, "refined")
    seconds = sum(fits.seconds for fits in stored.values())
    print(
        f"{'svd, two-sided':<28}{'':>18}{loss_increase:>9.4f}{'':>17}"
        f"{rose:>9.4f}{'':>7}{seconds:>8.1f}"
    )


def compare(args: argparse.Namespace, session: Session) -> None:
    text = session.scored_text("report")
    dense = text.teacher.score.figure
    for share in args.share:
        print(f"\n== linear layers at {share:.0%} of their parameters ==")
        print(f"{'':<28}{'loss increase, summed':^34}{'increase of log-perplexity':^26}{'fits':>8}")
        print(
            f"{'':<28}{'plain':>9}{'start':>9}{'refined':>9}{'ratio':>7}"
            f"{'plain':>10}{'refined':>9}{'ratio':>7}{'s':>8}"
        )
        for kind in args.forms:
            for order in args.orders:
                for split in args.splits:
                    stored = {}
                    for problem in problems(session):
                        modes = Modes.of(problem.spec, order, split)
                        method = largest_within(
                            problem.spec,
                            share,
                            lambda part, kind=kind, modes=modes: method_of(kind, modes, part),
                        )
                        stored[problem.spec.name] = fits_of(problem, method)
                    print_row(f"{kind} {order} {split}", session, text, dense, stored)
        print_svd(share, session, text, dense)
    print(f"\nratio: refined to plain; of the increase at most {TARGET} is wanted.")


def main() -> None:
    parser: Any = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", nargs="+", type=float, default=[0.5, 0.25], metavar="SHARE")
    kinds = ["tensor_train", "tucker", "cp"]
    parser.add_argument("--forms", nargs="+", choices=kinds, default=kinds)
    parser.add_argument(
        "--orders", nargs="+", type=int, default=[2, 3], help="modes of each side: 2, 3, 4, ..."
    )
    parser.add_argument("--splits", nargs="+", choices=get_args(Split), default=get_args(Split))
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument(
        "--data", help="text file or hub/name:config:split; the bundled texts when left out"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = parser.parse_args()
    request = SessionRequest(model=args.model, data=args.data, runs_dir=args.runs_dir)
    compare(args, open_session(request))


if __name__ == "__main__":
    main()
