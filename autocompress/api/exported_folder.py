"""Opens an exported folder beside the dense model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from autocompress.api.session import Session, TextSettings, open_session
from autocompress.config.document import read_document
from autocompress.config.recipe_file import read_recipe
from autocompress.errors import ModelError, StorageError
from autocompress.export.checkpoint import RECIPE
from autocompress.export.weights import weight_files
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.surgery.placement import prefix_of


class OpenedFolder(NamedTuple):
    """An exported folder as a plan of its dense model.

    Attributes:
        session: the dense model.
        plan: what the folder stores how.
        numbers: its tensors of compressed matrices and its vectors, which healing trains too, by
            their names in a checkpoint.
    """

    session: Session
    plan: Plan
    numbers: dict[str, Tensor]


def open_folder(
    folder: Path,
    *,
    model: str | None = None,
    texts: TextSettings | None = None,
    runs_dir: Path = Path("runs"),
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> OpenedFolder:
    """Open a folder, and the dense model in the type that it was made in.

    Args:
        folder: the folder.
        model: the dense model; the one its recipe names when left out.
        texts: which texts to use; the bundled ones when left out.
        runs_dir: folder of the cache.
        device: where the model goes.
        trust_remote_code: let code that comes with a hub model run.
        progress: told how far things are.

    Raises:
        ConfigurationError: its recipe cannot be read.
        ModelError: the dense model cannot be loaded, or is not the one that it was made from.
        StorageError: its other files cannot be read.
    """
    recipe = read_recipe(read_document(folder / RECIPE))
    session = open_session(
        model or recipe.model,
        texts or TextSettings(),
        runs_dir,
        device=device,
        dtype=_dtype_of(folder),
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    wanted = recipe.fingerprint
    if wanted is not None and wanted != session.loaded.fingerprint:
        raise ModelError(
            f"{session.loaded.source} is not the model that {folder} was made from",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=wanted,
            hint="Name the one it was made from with --model.",
        )
    return OpenedFolder(session, recipe.plan, _numbers_in(folder, recipe.plan, session))


def _dtype_of(folder: Path) -> str:
    """The type of the dense model that a folder was made from, on which its fingerprint depends."""
    path = folder / "config.json"
    try:
        dtype = json.loads(path.read_text("utf-8"))["quantization_config"]["dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is not that of a folder written by autocompress export: {error!r}"
        ) from error
    return str(dtype)


def _numbers_in(folder: Path, plan: Plan, session: Session) -> dict[str, Tensor]:
    """What a folder stores of compressed matrices, and its vectors, which healing trains too."""
    inventory = session.workbench.inventory
    inside = tuple(prefix_of(inventory[name]) for name, method in plan.items() if method != Keep())
    device = str(session.loaded.model.device)
    try:
        stored = [load_file(path, device=device) for path in weight_files(folder)]
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the weights in {folder} cannot be read: {error}") from error
    return {
        name: tensor
        for tensors in stored
        for name, tensor in tensors.items()
        if name.startswith(inside) or tensor.ndim == 1
    }
