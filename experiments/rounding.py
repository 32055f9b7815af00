"""Print what error feedback, correctors and trellis codes gain over rounding at equal bytes.

    python experiments/rounding.py
    python experiments/rounding.py --bits 2 --ranks 8 16 32
    python experiments/rounding.py --model DIR --data FILE

All linear layers of the model are stored in one form; the rest stays dense. The increase is that of
the log-perplexity on the report text.

First, the same scales and groups of 64 with codes rounded to the nearest and with error feedback.
Then every form, with its bits per weight, scales and factors included. The ratio is to uniform
codes with error feedback of as many bytes: of groups of all sizes and of more or fewer bits those
that no other beats, the logarithm of their increase interpolated over the bits. Below 1 is a win.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_left

from uniform_plans import Cost, MethodOf, UniformPlans, add_arguments, group_of, session_of

from autocompress.methods.base import Method
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.trellis import Trellis
from autocompress.numerics.shrinkage import GramKind
from autocompress.records import LayerSpec

FEEDBACK_TARGET = 0.65
GROUPS = (16, 32, 64, 0)


def codes(bits: int, group: int, *, gram: GramKind = "full") -> MethodOf:
    return lambda spec: Quantize(bits, group_of(spec, group), gram=gram)


def corrected(bits: int, group: int, rank: int, factor_bits: int) -> MethodOf:
    def method(spec: LayerSpec) -> Method:
        most = min(rank, *spec.shape)
        return QuantizePlusLowRank(bits, group_of(spec, group), most, factor_bits)

    return method


def trellis(bits: int, group: int) -> MethodOf:
    return lambda spec: Trellis(bits, group_of(spec, group))


def forms(bits: int, ranks: list[int]) -> dict[str, MethodOf]:
    """The forms that are compared with uniform codes, by label; add a new form here."""
    found = {
        f"{bits} bit row + r{rank} int{factor_bits}": corrected(bits, 0, rank, factor_bits)
        for rank in ranks
        for factor_bits in (8, 4)
    }
    return found | {
        f"{bits} bit trellis {'row' if not group else f'g{group}'}": trellis(bits, group)
        for group in (0, 64)
    }


def at_equal_bytes(bits: float, front: list[Cost]) -> float:
    """Increase of uniform codes of as many bits per weight; ``nan`` outside the measured."""
    index = bisect_left([cost.bits for cost in front], bits)
    if index in (0, len(front)):
        return math.nan
    low, high = front[index - 1], front[index]
    share = (bits - low.bits) / (high.bits - low.bits)
    return math.exp((1 - share) * math.log(low.increase) + share * math.log(high.increase))


def undominated(costs: list[Cost]) -> list[Cost]:
    """The costs that none beats in both bits and increase, by rising bits."""
    front: list[Cost] = []
    for cost in sorted(costs, key=lambda cost: (cost.bits, cost.increase)):
        if not front or cost.increase < front[-1].increase:
            front.append(cost)
    return front


def print_feedback(plans: UniformPlans) -> None:
    print(f"{'groups of 64':<26}{'nearest':>10}{'feedback':>10}{'ratio':>8}")
    for bits in (4, 3, 2):
        nearest = plans.cost(codes(bits, 64, gram="diagonal")).increase
        feedback = plans.cost(codes(bits, 64)).increase
        print(f"{f'{bits} bit':<26}{nearest:>10.4f}{feedback:>10.4f}{feedback / nearest:>8.2f}")
    print(f"At most {FEEDBACK_TARGET} is wanted.\n", flush=True)


def print_forms(plans: UniformPlans, bits: list[int], ranks: list[int]) -> None:
    print(f"{'form':<26}{'bits':>10}{'increase':>10}{'ratio':>8}  to uniform codes of equal bytes")
    uniform = {
        f"{bit} bit {f'g{group}' if group else 'row'}": plans.cost(codes(bit, group))
        for bit in (2, 3, 4)
        for group in GROUPS
    }
    front = undominated(list(uniform.values()))
    for label, cost in uniform.items():
        if cost in front:
            print(f"{label:<26}{cost.bits:>10.2f}{cost.increase:>10.4f}{'':>8}  front")
    for bit in bits:
        for label, method_of in forms(bit, ranks).items():
            cost = plans.cost(method_of)
            ratio = cost.increase / at_equal_bytes(cost.bits, front)
            print(f"{label:<26}{cost.bits:>10.2f}{cost.increase:>10.4f}{ratio:>8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3], help="of the codes")
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 8], help="of the correctors")
    add_arguments(parser)
    args = parser.parse_args()
    plans = UniformPlans(session_of(args))
    print_feedback(plans)
    print_forms(plans, args.bits, args.ranks)


if __name__ == "__main__":
    main()
