"""Print how fast a layer runs in each stored form, against the dense layer.

    python experiments/layer_speed.py
    python experiments/layer_speed.py --sweep          # where kernels lose to unpacking
    python experiments/layer_speed.py --ranks          # which ranks are fast
    python experiments/layer_speed.py --shape 8192 2048 --dtype float32

Weights are random, since only time is looked at. All forms run in turn, round after round, and each
ratio is of medians over the rounds, so that a machine whose speed drifts does not decide. "Rebuilt"
is the dense matrix made from the stored tensors for each product, as a form without a product of
its own would do. Memory is beyond the stored tensors: its peak during a product, and what stays
between them (a dense copy, layouts of kernels).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.dense import DenseMatrix
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.layers.quantized import QuantizedMatrix
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.layers.tucker import TuckerMatrix

Run = Callable[[], object]
SWEEP = (1, 4, 8, 16, 24, 32, 48, 64)


def filled(layer: CompressedMatrix) -> CompressedMatrix:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=generator) / 64)
    for buffer in layer.buffers():
        buffer.random_(0, 256, generator=generator)
    return layer


def forms(out: int, columns: int, dtype: torch.dtype) -> dict[str, CompressedMatrix]:
    """The layers to compare; factorised ones at about a quarter of the bytes of bf16."""
    common = {"bias": False, "dtype": dtype}

    def codes(bits: int, group: int) -> QuantizedMatrix:
        return QuantizedMatrix(out, columns, bits=bits, group_size=group, symmetric=False, **common)

    rank = out * columns // (4 * (out + columns)) // 8 * 8
    # Two modes a side: one core of out_1 in_1 r and one of out_2 in_2 r.
    out_modes, in_modes = (out // 64, 64), (columns // 64, 64)
    sizes = [o * i for o, i in zip(out_modes, in_modes, strict=True)]
    train_rank = out * columns // (4 * sum(sizes)) // 8 * 8
    pairs = (out_modes[0] // 2, 32, in_modes[0], 64)
    made = {
        "dense": DenseMatrix(out, columns, **common),
        "int8 row": codes(8, 0),
        "int8 g64": codes(8, 64),
        "int4 g64": codes(4, 64),
        "int4 row": codes(4, 0),
        "3 bit g64": codes(3, 64),
        "3 bit g64, widened": codes(3, 64).widen_(),
        "2 bit g64": codes(2, 64),
        "dense copy of 3 bit": codes(3, 64).cache_dense_(dtype),
        "svd": LowRankMatrix(out, columns, rank=rank, bits=0, **common),
        "svd int8": LowRankMatrix(out, columns, rank=2 * rank, bits=8, **common),
        "svd int4": LowRankMatrix(out, columns, rank=4 * rank, bits=4, groups=(64, 64), **common),
        "tensor train": TensorTrainMatrix(
            out,
            columns,
            ranks=(train_rank,),
            out_modes=out_modes,
            in_modes=in_modes,
            bits=0,
            **common,
        ),
        "tucker": TuckerMatrix(
            out, columns, ranks=pairs, out_modes=out_modes, in_modes=in_modes, bits=0, **common
        ),
    }
    return {name: filled(layer) for name, layer in made.items()}


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_bytes(run: Run) -> int:
    """Most memory that tensors take during a call, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    changes = [
        event.nbytes()
        for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns())
        if event.name() == "[memory]"
    ]
    now = most = 0
    for change in changes:
        now += change
        most = max(most, now)
    return most


def rebuilt(layer: CompressedMatrix, x: Tensor) -> Run:
    return lambda: x @ layer.to_dense().to(x.dtype).T


def compare(out: int, columns: int, dtype: torch.dtype, batches: list[int], rounds: int) -> None:
    layers = forms(out, columns, dtype)
    inputs = {batch: torch.randn(batch, columns).to(dtype) for batch in batches}
    peaks, columns_of = {}, {}
    for batch, x in inputs.items():
        runs: dict[str, Run] = {name: partial(layer, x) for name, layer in layers.items()}
        for name in ("tensor train", "tucker"):
            runs[f"{name}, rebuilt"] = rebuilt(layers[name], x)
        for name, run in runs.items():
            run()  # layouts and plans are made
            peaks[name, batch] = peak_bytes(run)
        columns_of[batch] = medians(runs, rounds)
    print(f"\n{columns} to {out}, {str(dtype).removeprefix('torch.')}: times faster than dense")
    heads = [f"batch {batch}" for batch in batches] + [f"peak {batch}" for batch in batches]
    print(f"{'form':<24}{'bytes':>8}", *(f"{head:>10}" for head in heads), f"{'stays':>8}")
    for name in columns_of[batches[0]]:
        layer = layers[name.removesuffix(", rebuilt")]
        stored = sum(t.nbytes for t in layer.state_dict().values()) / (2 * out * columns)
        ratios = [columns_of[b]["dense"] / columns_of[b][name] for b in batches]
        extra = [peaks[name, b] / 2**20 for b in batches]
        stays = layer.cached_bytes / 2**20
        print(
            f"{name:<24}{stored:>8.3f}",
            *(f"{r:>9.2f}x" for r in ratios),
            *(f"{e:>6.1f} MiB" for e in extra),
            f"{stays:>4.0f} MiB",
        )
    print("bytes: of the stored tensors, in shares of a bf16 matrix")


def sweep(out: int, columns: int, rounds: int) -> None:
    """Kernels against unpacking, by number of inputs: where INT8_BATCH and INT4_BATCH come from."""
    layers = forms(out, columns, torch.bfloat16)
    print(f"\n{columns} to {out}, bf16: unpacking takes this many times as long as the kernel")
    print(f"{'inputs':<12}", *(f"{batch:>7}" for batch in SWEEP))
    for name in ("int8 row", "int8 g64", "int4 g64", "int4 row"):
        table, ratios = layers[name].table, []
        table.multiply(torch.ones(1, columns, dtype=torch.bfloat16))
        kernel = table._by_rows.kernel  # also beyond the batch that it is used for
        for batch in SWEEP:
            x = torch.randn(batch, columns).bfloat16()
            table.use_kernels = False
            found = medians(
                {"kernel": partial(kernel.multiply, x), "unpack": partial(table.multiply, x)},
                rounds,
            )
            ratios.append(found["unpack"] / found["kernel"])
        print(f"{name:<12}", *(f"{ratio:>6.2f}x" for ratio in ratios))


def ranks(out: int, columns: int, dtype: torch.dtype, rounds: int) -> None:
    """Two factors of ranks around a multiple of 64: time per rank against that of rank 512."""
    chosen = (504, 508, 509, 510, 511, 512, 516, 520, 528, 544)
    print(f"\n{columns} to {out}: time per rank, in shares of that of rank 512")
    print(f"{'rank':<12}", *(f"{rank:>7}" for rank in chosen))
    for batch in (1, 256):
        x = torch.randn(batch, columns).to(dtype)
        layers = {
            rank: filled(LowRankMatrix(out, columns, rank=rank, bits=0, bias=False, dtype=dtype))
            for rank in chosen
        }
        found = medians(
            {str(rank): partial(layer, x) for rank, layer in layers.items()}, 3 * rounds
        )
        shares = [found[str(rank)] / rank / (found["512"] / 512) for rank in chosen]
        print(f"batch {batch:<6}", *(f"{share:>7.2f}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs=2, type=int, default=[8192, 2048], metavar=("OUT", "IN"))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 256], help="inputs at a time")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each form")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", action="store_true", help="kernels against unpacking")
    parser.add_argument("--ranks", action="store_true", help="which ranks are fast")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    with torch.inference_mode():
        if args.sweep:
            sweep(*args.shape, args.rounds)
        elif args.ranks:
            ranks(*args.shape, dtype, args.rounds)
        else:
            compare(*args.shape, dtype, args.batch, args.rounds)


if __name__ == "__main__":
    main()
