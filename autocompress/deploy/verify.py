"""Loads an exported folder in a fresh process and compares its score with that of the search.

``python -m autocompress.deploy.verify FOLDER WINDOWS CONTEXT OPENING`` is that process; a target
that opens folders in another way names a module of its own, which is run alike.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from autocompress.errors import StorageError
from autocompress.evaluation.windows import Windows
from autocompress.fresh_process import answer_of, give_answer

OPENER = "autocompress.deploy.verify"
TOLERANCE = 1e-4  # relative, on the figure of the objective
_GONE = "Nothing of it was kept."  # by whoever had it written


@dataclass(frozen=True)
class Verification:
    """What a fresh process saw of an exported folder.

    Attributes:
        figure: on the given windows.
        tokens: scored tokens that it is a mean over.
        bytes: of all tensors of the loaded model.
    """

    figure: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Opening:
    """How a folder is opened.

    Attributes:
        device: where it is scored.
        dtype: type to compute in; the stored one when left out.
        trust_remote_code: whether code that comes with the model may run.
    """

    device: str = "cpu"
    dtype: str | None = None
    trust_remote_code: bool = False


USUAL = Opening()


def verify_folder(
    folder: Path,
    windows: Windows,
    *,
    figure: float,
    weight_bytes: int | None = None,
    opening: Opening = USUAL,
    shown: Path | None = None,
    opener: str = OPENER,
) -> Verification:
    """Load a folder in a fresh process and compare its figure with the expected one.

    Args:
        folder: the exported folder.
        windows: what to score.
        figure: what the compressed model scored on them before it was written.
        weight_bytes: bytes that the loaded model must have, when known.
        opening: how to open it.
        shown: what to call the folder, if it is not at its place yet.
        opener: module that opens and scores it.

    Raises:
        StorageError: it does not load, or is not the model it should be.
    """
    try:
        seen = score_in_fresh_process(folder, windows, opening, opener)
    except StorageError as error:
        raise error.within(str(shown or folder)) from error
    if weight_bytes is not None and seen.bytes != weight_bytes:
        raise StorageError(
            f"{shown or folder} loads as another model",
            got=f"{seen.bytes} bytes of weights",
            wanted=f"{weight_bytes}",
            hint=_GONE,
        )
    if not math.isclose(seen.figure, figure, rel_tol=TOLERANCE):
        raise StorageError(
            f"{shown or folder}, loaded again, does not score what was measured",
            got=f"{seen.figure:.6g}",
            wanted=f"{figure:.6g} to {TOLERANCE:g} relative",
            hint=f"{_GONE} The same device and type as in the search are needed for equal figures.",
        )
    return seen


def score_in_fresh_process(
    folder: Path, windows: Windows, opening: Opening = USUAL, opener: str = OPENER
) -> Verification:
    """Load a folder and score it in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="autocompress-verify-") as scratch:
        ids = Path(scratch) / "windows.safetensors"
        tensors = {"ids": windows.ids.cpu().contiguous(), "begin": torch.tensor(windows.begin)}
        save_file(tensors, ids)
        try:
            answer = answer_of(
                opener,
                str(folder),
                str(ids),
                str(windows.context),
                json.dumps(asdict(opening)),
                threads=torch.get_num_threads(),
            )
        except StorageError as error:
            raise StorageError(error.what, hint=_GONE) from error
    return Verification(**answer)


def main(folder: str, ids: str, context: str, opening: str) -> None:
    """Load a folder, score it, and print one line."""
    from autocompress.surgery.inventory import stored_bytes
    from autocompress.surgery.loading import load_model

    loaded = load_model(folder, **json.loads(opening))
    give_score(loaded.model, stored_bytes(loaded.model, loaded.stored_types), ids, context)


def give_score(model: Any, size: int, ids: str, context: str) -> None:
    """Score a model that was opened, and print what the verifying process waits for.

    Args:
        model: in evaluation mode.
        size: bytes that it was opened from.
        ids: file of the windows.
        context: their length.
    """
    from autocompress.evaluation.objectives import objective_for
    from autocompress.evaluation.scoring import score
    from autocompress.surgery.dense_copies import dense_copies

    tensors = load_file(ids)
    begin = tuple(map(int, tensors["begin"]))
    with dense_copies(model):  # as the search scores it: in 16 bits factors round otherwise
        windows = objective_for(model).prepare(tensors["ids"], int(context), begin)
        scored = score(model, windows)
    give_answer(asdict(Verification(scored.figure, scored.tokens, size)))


if __name__ == "__main__":
    main(*sys.argv[1:])
