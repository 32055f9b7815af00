"""Opens an exported folder beside the dense model that it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from autocompress.api.recorded_texts import recorded_texts
from autocompress.deploy.documents import MEASUREMENTS, RECIPE
from autocompress.deploy.weights import weight_files
from autocompress.errors import ConfigurationError, ModelError, StorageError
from autocompress.methods.keep import Keep
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.requests.groups import FolderRequest, SessionRequest, TextRequest
from autocompress.session.session import Session, check_named, open_session
from autocompress.space.document import read_document
from autocompress.space.recipe_file import read_recipe
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.native import NATIVE
from autocompress.surgery.placement import prefix_of


def folder_of(source: object) -> Path | None:
    """The model folder that a source names, or ``None`` where it is a study."""
    if isinstance(source, str | Path) and (Path(source) / "config.json").is_file():
        return Path(source)
    return None


def refuse_options(what: str, **options: object) -> None:
    """Refuse options that would do nothing.

    Args:
        what: the thing that they do not go with.
        options: by their names; ``None`` or ``False`` where they are left out.

    Raises:
        ConfigurationError: one is given.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            option = name.replace("_", "-")
            raise ConfigurationError(
                f"--{option} does not go with {what}", got=value, hint="Leave it out."
            )


class OpenedFolder(NamedTuple):
    """An exported folder as a plan of its dense model.

    Attributes:
        path: the folder.
        session: the dense model.
        compressed: what the folder stores how, with its tensors of compressed matrices and its
            vectors, which healing trains too.
        penalties: what its recipe asks of the ranks when it is healed.
    """

    path: Path
    session: Session
    compressed: Compressed
    penalties: tuple[Penalty, ...] = ()


def open_folder(folder: Path, request: FolderRequest) -> OpenedFolder:
    """Open a folder, and the dense model in the type that it was made in.

    Args:
        folder: the folder.
        request: the dense model and the texts, where they are not those of the folder.

    Raises:
        ConfigurationError: its recipe cannot be read.
        DataError: no text is named, and the folder does not know its own.
        ModelError: it is no exported folder; the dense model cannot be loaded, or is not the one
            that it was made from.
        StorageError: its other files cannot be read.
    """
    if not (folder / RECIPE).is_file():
        raise ModelError(
            f"the folder {folder} is no compressed model: it has no {RECIPE}",
            wanted="a folder that autocompress export or compress wrote",
            hint="A dense model is compressed first.",
        )
    recipe = read_recipe(read_document(folder / RECIPE))
    session = open_session(
        _texts_of(folder, request).into(
            SessionRequest,
            model=request.model or recipe.model,
            runs_dir=request.runs_dir,
            device=request.device or "cpu",
            compute_dtype=dtype_of(folder),
            trust_remote_code=request.trust_remote_code,
            dequantize=was_quantized(folder),
            progress=request.progress,
        )
    )
    wanted = recipe.fingerprint
    if wanted is not None and wanted != session.loaded.fingerprint:
        raise ModelError(
            f"{session.loaded.source} is not the model that {folder} was made from",
            got=f"fingerprint {session.loaded.fingerprint}",
            wanted=wanted,
            hint="Name the one it was made from with --model.",
        )
    weights = _weights_in(folder, recipe.plan, session)
    return OpenedFolder(folder, session, Compressed(recipe.plan, weights), recipe.penalties)


def _texts_of(folder: Path, request: FolderRequest) -> TextRequest:
    """The texts that are named, else those that the folder was made with."""
    recorded = recorded_texts(folder)
    if recorded is None and request.data is None:
        check_named(TextRequest(), str(folder), apart=False)
    texts = recorded or TextRequest()
    if request.data is not None:
        texts = TextRequest(data=request.data, context=texts.context, bos=texts.bos)
    return texts if request.context is None else replace(texts, context=request.context)


def was_quantized(folder: Path) -> bool:
    """Whether a folder's dense model is a quantized checkpoint that was made dense."""
    try:
        return "quantized_by" in json.loads((folder / MEASUREMENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return False


def dtype_of(folder: Path) -> str:
    """The type that a folder's dense model was computed in, on which its fingerprint depends."""
    try:
        return str(json.loads((folder / MEASUREMENTS).read_text("utf-8"))["computed_in"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # written before it was noted: then it is the type that is stored
    path = folder / "config.json"
    try:
        dtype = json.loads(path.read_text("utf-8"))["quantization_config"]["dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is not that of a folder written by autocompress export: {error!r}"
        ) from error
    return str(dtype)


def _weights_in(folder: Path, plan: Plan, session: Session) -> dict[str, Tensor]:
    """What a folder stores of compressed matrices, and its vectors, which healing trains too."""
    model, inventory = session.loaded.model, session.workbench.inventory
    inside = tuple(prefix_of(inventory[name]) for name, method in plan.items() if method != Keep())
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    weights: dict[str, Tensor] = {}
    files = weight_files(folder)
    if not files:
        raise ModelError(
            f"the folder {folder} has no weights that autocompress reads",
            wanted=f"a folder that was written for the target {NATIVE.name}",
        )
    try:
        for path in files:
            with safe_open(path, "pt", device=str(model.device)) as file:
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    vector = len(file.get_slice(name).get_shape()) == 1 and name not in buffers
                    if name.startswith(inside) or vector:
                        weights[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the weights in {folder} cannot be read: {error}") from error
    return weights
