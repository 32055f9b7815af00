"""Print what low-rank key and value projections save of the key-value cache, and what that costs.

    python experiments/kv_cache.py
    python experiments/kv_cache.py --model DIR --data FILE --share 0.5 0.25

For each share of the full rank: bytes a token of the cache, and perplexity on the report text by
three readings. "at once" reads a window in one go, without a cache; the other two read it in pieces
through the usual cache and through the latent one, which should agree to rounding. The increase
over the dense model is the price of the low rank; the cache adds none. The last column is the time
of a decoded token against the usual cache, on this machine, in rounds taken in turn.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from autocompress.evaluation.latency import DecodeTimer, interleaved, prompt_of
from autocompress.evaluation.windows import Windows
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.records import Role
from autocompress.requests.groups import SessionRequest
from autocompress.runtime.kv_cache import LatentCache, cache_bytes_per_token
from autocompress.session.session import Session, open_session

PIECE = 32  # tokens read at a time through a cache


def perplexity(model: Any, windows: Windows, make_cache: Callable[[], Any] | None) -> float:
    """Perplexity of a text, read through a cache in pieces, or at once where there is none."""
    total = 0.0
    for window in windows:
        ids = window.to(model.device)[None]
        with torch.inference_mode():
            logits = _logits(model, ids, make_cache() if make_cache else None)
        total += float(
            torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        )
    return math.exp(total / windows.tokens)


def _logits(model: Any, ids: Tensor, cache: Any) -> Tensor:
    if cache is None:
        return model(input_ids=ids, use_cache=False).logits
    pieces = [
        model(input_ids=piece, past_key_values=cache, use_cache=True).logits
        for piece in ids.split(PIECE, dim=1)
    ]
    return torch.cat(pieces, dim=1)


def plan_at(session: Session, share: float) -> Plan:
    """Keys and values at a share of their full rank."""
    specs = session.workbench.inventory.layers
    chosen = [spec for spec in specs if spec.role in (Role.KEY, Role.VALUE)]
    return Plan.of({spec.name: Svd(max(1, int(share * min(spec.shape)))) for spec in chosen})


def slowdown(model: Any) -> float:
    """Time of a token decoded with the latent cache, against the usual one."""
    latent = DecodeTimer(model, prompt_of(model), make_cache=LatentCache.if_smaller)
    usual = DecodeTimer(model, prompt_of(model))
    times = interleaved({"usual": usual.times, "latent": latent.times})
    return times["latent"].median_ms / times["usual"].median_ms


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument("--data", help="text file; the bundled texts when left out")
    parser.add_argument("--dtype", help="float32 or bfloat16; as stored when left out")
    parser.add_argument("--share", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--tokens", type=int, default=4096, help="of the report text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            SessionRequest(
                model=options.model,
                data=options.data,
                runs_dir=folder,
                compute_dtype=options.dtype,
            )
        )
        model = session.loaded.model
        windows = Windows(session.report_ids[: options.tokens], session.context)
        whole, dense = cache_bytes_per_token(model), perplexity(model, windows, None)
        assert whole is not None
        print(f"dense: {whole} bytes a token, perplexity {dense:.4f}\n")
        print("share  bytes/token  of dense   at once     usual    latent      increase   time")
        for share in options.share:
            with session.workbench.applied(plan_at(session, share), session.builder.build):
                bytes_ = cache_bytes_per_token(model) or whole
                makers = (
                    None,
                    lambda: DynamicCache(config=model.config),
                    lambda: LatentCache.for_model(model),
                )
                read = [perplexity(model, windows, make) for make in makers]
                shown = "".join(f"{each:10.4f}" for each in read)
                increase = math.log(read[2] / dense)
                print(
                    f"{share:5.2f}{bytes_:13}{bytes_ / whole:10.3f}{shown}{increase:10.4f}"
                    f"{slowdown(model):7.2f}"
                )


if __name__ == "__main__":
    main()
