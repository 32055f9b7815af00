"""Print what the metric, rounded factors and shrunk Gram matrices do for low-rank layers.

    python experiments/low_rank_fits.py
    python experiments/low_rank_fits.py --share 0.25 --tokens 512 2048
    python experiments/low_rank_fits.py --model DIR --data FILE

All linear layers of the model become two factors; the rest stays dense. The increase is that of the
log-perplexity on the report text.

  metric    factors of a share of the parameters, cut in three metrics, of the same bytes
  factors   as many bytes spent on factors of the model's type, of int8 and of int4: higher ranks
  grams     statistics of few tokens: Gram matrices as they are, shrunk towards their diagonals,
            and the diagonals alone. loss increase is predicted on statistics of other text, the
            selection text, so that it does not favour what was fitted to
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from uniform_plans import MethodOf, UniformPlans, add_arguments, group_of, rank_at, session_of

from autocompress.calibration.statistics import collect_statistics
from autocompress.evaluation.windows import Windows
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.numerics.metric import Metric
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.svd import MetricKind
from autocompress.records import LayerSpec
from autocompress.session.session import Session

TARGETS = {"input": 0.9, "plain": 0.8}


def at_share(share: float, metric: MetricKind = "two_sided", gram: GramKind = "full") -> MethodOf:
    return lambda spec: Svd(rank_at(spec, share), metric, gram=gram)


def within(share: float, bits: int) -> MethodOf:
    """The highest rank whose factors of some bits take at most a share of the kept bytes."""

    def method(spec: LayerSpec) -> Method:
        most = share * Keep().cost(spec)
        ranks = range(min(spec.shape), 0, -1)
        rank = next((rank for rank in ranks if Svd(rank, bits=bits).cost(spec) <= most), 1)
        return Svd(rank, bits=bits)

    return method


def print_metrics(plans: UniformPlans, share: float) -> None:
    increases = {kind: plans.cost(at_share(share, kind)).increase for kind in get_args(MetricKind)}
    print(f"metric, {share:.0%} of the parameters")
    for kind, increase in increases.items():
        ratio = increases["two_sided"] / increase
        wanted = f"  below {TARGETS[kind]} is wanted" if kind in TARGETS else ""
        print(f"  {kind:<20}{increase:>9.4f}   two-sided to it {ratio:.2f}{wanted}", flush=True)


def print_factors(plans: UniformPlans, share: float) -> None:
    print(f"\nfactors, {share:.1%} of the bytes")
    kept = plans.cost(within(share, 0)).increase
    for bits in (0, 8, 4):
        cost = plans.cost(within(share, bits))
        label = f"int{bits}" if bits else "as the model"
        print(
            f"  {label:<20}{cost.increase:>9.4f}   to the first {cost.increase / kept:.3f}"
            f"   {cost.bits:.2f} bits a weight",
            flush=True,
        )


def statistics(session: Session, name: str, tokens: int) -> dict[str, Metric]:
    """Metrics from the first tokens of a text."""
    windows = Windows(getattr(session, f"{name}_ids")[:tokens], session.context)
    batches = (window[None] for window in windows)
    layers = session.workbench.inventory.layers
    return collect_statistics(session.loaded.model, layers, batches, seed=session.seed)


def print_grams(session: Session, share: float, tokens: list[int]) -> None:
    forms: dict[str, Callable[[GramKind], MethodOf]] = {
        f"svd {share:.0%}": lambda gram: at_share(share, gram=gram),
        "3 bit g64": lambda gram: lambda spec: Quantize(3, group_of(spec, 64), gram=gram),
        "2 bit g64 + r8": lambda gram: (
            lambda spec: QuantizePlusLowRank(2, group_of(spec, 64), min(8, *spec.shape), gram=gram)
        ),
    }
    print("\ngrams: loss increase on other text, and increase")
    print(f"  {'tokens':>8}  {'':<18}" + "".join(f"{kind:^22}" for kind in get_args(GramKind)))
    judges = statistics(session, "selection", session.settings.selection_tokens)
    for count in tokens:
        plans = UniformPlans(session, statistics(session, "calibration", count), judges)
        for label, form in forms.items():
            costs = [plans.cost(form(gram)) for gram in get_args(GramKind)]
            cells = "".join(f"{cost.loss_increase:>11.4f}{cost.increase:>9.4f}  " for cost in costs)
            print(f"  {count:>8}  {label:<18}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the parameters kept")
    parser.add_argument("--factor-share", type=float, default=0.125, help="of the bytes kept")
    parser.add_argument("--tokens", nargs="*", type=int, default=[512, 2048, 16_384])
    add_arguments(parser)
    args = parser.parse_args()
    session = session_of(args)
    plans = UniformPlans(session)
    print_metrics(plans, args.share)
    print_factors(plans, args.factor_share)
    print_grams(session, args.share, args.tokens)


if __name__ == "__main__":
    main()
