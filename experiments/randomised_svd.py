"""Print how much faster randomised SVD is than the full one, and how near to the best its error.

    python experiments/randomised_svd.py
    python experiments/randomised_svd.py --size 2048 --rank 128
    python experiments/randomised_svd.py --model DIR

First a square matrix whose singular values fall off as slowly as those of trained weights do, as
the power --decay of their index, decomposed in full by torch.linalg.svd. Then every matrix of a
model that randomised projections are used for, at a sixteenth of its full rank, in fp64 and as
whitened as a corrector sees it. error: of the best approximation of that rank there is, 1 is none
beyond it; sketch: memory of the random vectors, against those of the Gaussian one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from uniform_plans import add_arguments, session_of

from autocompress.numerics.randomised import OVERSAMPLING, SketchKind, randomised_svd
from autocompress.numerics.svd import Whitening, randomised_wins

T = TypeVar("T")
SPEED_TARGET, ERROR_TARGET = 5, 1.01
KINDS: tuple[SketchKind, ...] = ("gaussian", "hadamard")


def falling(size: int, decay: float) -> Tensor:
    """A matrix ``[n, n]`` with random singular vectors, its values ``1, 2**-decay, ...``."""
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2)]
    return turns[0] * torch.arange(1, size + 1).float().pow(-decay) @ turns[1]


def timed(compute: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return compute(), time.perf_counter() - start


def sketch_bytes(kind: SketchKind, columns: int, size: int, item: int) -> int:
    """Memory of what a sketch multiplies with: vectors, or signs and the indices that are kept."""
    return columns * size * item if kind == "gaussian" else columns * item + size * 8


def compare(label: str, matrix: Tensor, rank: int) -> None:
    values, full = timed(lambda: torch.linalg.svd(matrix, full_matrices=False)[1])
    least = float(values[rank:].square().sum().sqrt())
    for kind in KINDS:
        (left, found, right), seconds = timed(
            lambda kind=kind: randomised_svd(matrix, rank, kind=kind)
        )
        error = float((matrix - (left * found) @ right).norm()) / least
        size, item = rank + OVERSAMPLING, matrix.element_size()
        share = sketch_bytes(kind, matrix.shape[1], size, item)
        share /= sketch_bytes("gaussian", matrix.shape[1], size, item)
        print(
            f"{label:<36}{rank:>6}  {kind:<10}{full / seconds:>7.1f}x{error:>9.4f}{share:>9.2%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=4096, help="0 leaves this matrix out")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--decay", type=float, default=0.7)
    add_arguments(parser)
    args = parser.parse_args()
    print(f"{'matrix':<36}{'rank':>6}  {'sketch':<10}{'faster':>8}{'error':>9}{'sketch':>9}")
    if args.size:
        label = f"{args.size} x {args.size}, values k^-{args.decay}"
        compare(label, falling(args.size, args.decay), args.rank)
    session = session_of(args)
    for spec in session.workbench.inventory.layers:
        rank = min(spec.shape) // 16
        if randomised_wins(spec.shape, rank):
            metric = session.metrics[spec.name]
            whitening = Whitening.of(metric.rows, metric.columns)
            weight = session.workbench.problem(spec.name).weight32.double()
            compare(spec.name, whitening.apply(weight), rank)
    print(f"\nWanted: at least {SPEED_TARGET}x faster at 4096, an error of at most {ERROR_TARGET}.")


if __name__ == "__main__":
    main()
