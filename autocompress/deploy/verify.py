"""Loads an exported folder in a fresh process and compares its score with that of the search.

``python -m autocompress.deploy.verify FOLDER WINDOWS CONTEXT SETTINGS`` is that process.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from autocompress.errors import StorageError
from autocompress.evaluation.windows import Windows
from autocompress.fresh_process import answer_of, give_answer

TOLERANCE = 1e-4  # relative, on perplexity
_GONE = "Nothing of it was kept."  # by whoever had it written


@dataclass(frozen=True)
class Verification:
    """What a fresh process saw of an exported folder.

    Attributes:
        perplexity: on the given windows.
        tokens: predicted tokens that it is a mean over.
        bytes: of all tensors of the loaded model.
    """

    perplexity: float
    tokens: int
    bytes: int


def verify_checkpoint(
    folder: Path,
    windows: Windows,
    *,
    perplexity: float,
    weight_bytes: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    shown: Path | None = None,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Load a folder in a fresh process and compare its perplexity with the expected one.

    Args:
        folder: the exported folder.
        windows: what to score.
        perplexity: what the compressed model scored on them before it was written.
        weight_bytes: bytes that the loaded model must have, when known.
        device: where to score it.
        dtype: type to compute in; the stored one when left out.
        trust_remote_code: whether code that comes with the model may run.
        shown: what to call the folder, if it is not at its place yet.
        tolerance: largest relative difference.

    Raises:
        StorageError: it does not load, or is not the model it should be.
    """
    try:
        seen = score_in_fresh_process(
            folder, windows, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except StorageError as error:
        raise error.within(str(shown or folder)) from error
    if weight_bytes is not None and seen.bytes != weight_bytes:
        raise StorageError(
            f"{shown or folder} loads as another model",
            got=f"{seen.bytes} bytes of weights",
            wanted=f"{weight_bytes}",
            hint=_GONE,
        )
    if not math.isclose(seen.perplexity, perplexity, rel_tol=tolerance):
        raise StorageError(
            f"{shown or folder}, loaded again, does not score what was measured",
            got=f"perplexity {seen.perplexity:.6g}",
            wanted=f"{perplexity:.6g} to {tolerance:g} relative",
            hint=f"{_GONE} The same device and type as in the search are needed for equal figures.",
        )
    return seen


def score_in_fresh_process(
    folder: Path,
    windows: Windows,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Load a folder and score it in a process of its own."""
    settings = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    with tempfile.TemporaryDirectory(prefix="autocompress-verify-") as scratch:
        ids = Path(scratch) / "windows.safetensors"
        tensors = {"ids": windows.ids.cpu().contiguous(), "begin": torch.tensor(windows.begin)}
        save_file(tensors, ids)
        try:
            answer = answer_of(
                "autocompress.deploy.verify",
                str(folder),
                str(ids),
                str(windows.context),
                json.dumps(settings),
                threads=torch.get_num_threads(),
            )
        except StorageError as error:
            raise StorageError(error.what, hint=_GONE) from error
    return Verification(**answer)


def main(folder: str, ids: str, context: str, settings: str) -> None:
    """Load, score and print one line."""
    from autocompress.evaluation.scoring import score
    from autocompress.surgery.dense_copies import dense_copies
    from autocompress.surgery.inventory import stored_bytes
    from autocompress.surgery.loading import load_model

    loaded = load_model(folder, **json.loads(settings))
    model = loaded.model
    tensors = load_file(ids)
    begin = tuple(map(int, tensors["begin"]))
    with dense_copies(model):  # as the search scores it: in 16 bits factors round otherwise
        scored = score(model, Windows(tensors["ids"], int(context), begin))
    seen = Verification(scored.perplexity, scored.tokens, stored_bytes(model, loaded.stored_types))
    give_answer(asdict(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
