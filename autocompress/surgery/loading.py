"""Loads dense models, the bundled one, and exported folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from autocompress.errors import ConfigurationError, ModelError, first_line
from autocompress.paths import BUNDLED_MODEL
from autocompress.quiet import quietened
from autocompress.surgery import quantizer  # registers the loader of exported folders
from autocompress.surgery.compute_type import FASTEST, fastest_type
from autocompress.surgery.inventory import NO_TYPES, stored_tensors_of
from autocompress.surgery.quantized_checkpoints import foreign_method, prepare
from autocompress.surgery.stored_types import StoredTypes, stored_types

BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
QUANT_METHOD = quantizer.QUANT_METHOD


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        source: what the user named, or ``autocompress-demo``.
        fingerprint: hash of names, shapes, types and bytes of its tensors.
        trust_remote_code: whether code that comes with the model was allowed to run.
        ignored: names in the checkpoint that the model has no use for.
        stored_types: types of the tensors that the checkpoint stores in another type than the model
            computes in, by name: bytes count in these, and exports are written in them.
        quantized_by: what had quantized the checkpoint, where it was made dense.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    fingerprint: str
    trust_remote_code: bool = False
    ignored: tuple[str, ...] = ()
    stored_types: StoredTypes = field(default_factory=dict)
    quantized_by: str | None = None


def load_model(
    source: str | None,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        source: a folder (dense or exported), a name on the hub, or ``None`` for the bundled model.
        device: where to put it, as torch names it.
        dtype: floating-point type that the model computes in, or its torch name; the stored one
            when left out, ``fastest`` for what the device computes it in fastest, see
            ``fastest_type``. Codes, scales and factors stay as they are stored.
        trust_remote_code: whether code that comes with the model may run.
        dequantize: whether transformers is to make a quantized checkpoint dense.

    Raises:
        ModelError: the model cannot be found, read or trusted to be whole, or is quantized.
        ConfigurationError: a device or type that does not exist here.
    """
    name = source or BUNDLED_MODEL
    place = str(BUNDLED_FOLDER) if name == BUNDLED_MODEL else _checked_place(name)
    target, kind = _device(device), _dtype(dtype)
    with _quiet(), _explained(name):
        read = partial(_read, place, name, trust_remote_code, dequantize)
        model, ignored, quantized_by = read("auto" if kind == FASTEST else kind)
        if kind == FASTEST and fastest_type(model.dtype, target) != model.dtype:
            # Read again: a cast would not give back what buffers lost when they were made.
            model, ignored, quantized_by = read(torch.float32)
    with (
        _quiet(),
        _explained(f"the tokenizer of {name}", "The folder needs a tokenizer beside the weights."),
    ):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    _check_finite(model, name)
    model.to(target).eval().requires_grad_(False)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    with _explained(name):
        types = {} if quantized_by else stored_types(model, place, _file_of_weights(model))
    mark = fingerprint(model, types)
    return LoadedModel(
        model, tokenizer, name, mark, trust_remote_code, ignored, types, quantized_by
    )


def is_bundled(source: str | None) -> bool:
    """Whether a source names the bundled model."""
    return source in (None, BUNDLED_MODEL, str(BUNDLED_FOLDER))


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> tuple[Any, Any]:
    """Load an exported folder, or any other model: ``(model, tokenizer)``.

    Raises:
        ModelError: as ``load_model``.
    """
    loaded = load_model(
        str(folder),
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
    )
    return loaded.model, loaded.tokenizer


def fingerprint(model: torch.nn.Module, types: StoredTypes = NO_TYPES) -> str:
    """Sixteen hexadecimal digits that change with any stored tensor of the model.

    Args:
        model: the model.
        types: see ``LoadedModel.stored_types``.
    """
    digest = hashlib.sha256(str(sorted(types.items())).encode() if types else b"")
    for name, tensor in sorted(stored_tensors_of(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():  # an empty tensor cannot be viewed as bytes
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def is_exported(model: torch.nn.Module) -> bool:
    """Whether a model was loaded from a folder that autocompress wrote."""
    return getattr(model, "quantization_method", None) == QUANT_METHOD


def _file_of_weights(model: PreTrainedModel) -> str | None:
    config = getattr(model.config, "quantization_config", None)
    return getattr(config, "read_from", None) if is_exported(model) else None


def has_own_code(loaded: LoadedModel) -> bool:
    """Whether a model runs code that comes with it."""
    return loaded.trust_remote_code and bool(getattr(loaded.model.config, "auto_map", None))


def _checked_place(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is a folder without a model", wanted="a config.json in it")
        return str(path)
    if path.exists():
        raise ModelError(f"{name} is a file", wanted="a folder with a model, or a name on the hub")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no folder {name}", wanted="a folder with a model, or a name on the hub"
        )
    return name


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigurationError(
            "--device is not usable here", got=repr(name), hint=first_line(error)
        ) from error
    return device


def _dtype(name: str | torch.dtype | None) -> torch.dtype | str:
    if name in (None, FASTEST):
        return name or "auto"
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise ConfigurationError(
            "--compute-dtype is not usable", got=repr(name), wanted="float32, bfloat16 or float16"
        )
    return dtype


def _read(
    place: str, name: str, trust_remote_code: bool, dequantize: bool, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, tuple[str, ...], str | None]:
    """The model, names in its checkpoint without a use, and what quantized the checkpoint."""
    config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    quantized_by = foreign_method(config)
    to_dequantize = prepare(config, name, dequantize=dequantize)
    for loader in _loaders(config, trust_remote_code):
        options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
        if not issubclass(loader, PreTrainedModel):
            options["trust_remote_code"] = trust_remote_code
        if quantized_by:
            options["config"] = config
        model, report = loader.from_pretrained(place, **options)
        if not report["missing_keys"]:
            if to_dequantize:
                model = model.dequantize()
            return model, tuple(sorted(report["unexpected_keys"])), quantized_by
    missing = sorted(report["missing_keys"])
    raise ModelError(
        f"the checkpoint lacks {len(missing)} of the tensors of {type(model).__name__}",
        got=f"no {missing[0]}",
        hint="It is damaged, or belongs to another architecture.",
    )


def _loaders(config: Any, trust_remote_code: bool) -> Iterator[Any]:
    """What to load a checkpoint as, best first: a later one where it lacks a tensor of that one."""
    name = (getattr(config, "architectures", None) or ["?"])[0]
    own_code = getattr(config, "auto_map", None) if trust_remote_code else None
    if own_code:
        kinds = (kind for kind, place in own_code.items() if str(place).endswith(f".{name}"))
        yield getattr(transformers, next(kinds, ""), AutoModelForCausalLM)
        return
    architecture = getattr(transformers, name, None)
    if architecture is None:
        yield AutoModelForCausalLM
        return
    # AutoModel writes a model without its head. Where head and embedding are one, nothing is lost.
    headless = architecture is MODEL_MAPPING.get(type(config), None)
    if headless and getattr(config, "tie_word_embeddings", False):
        language_model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        if language_model is not None:
            yield language_model
    # a masked or a sequence-to-sequence model comes as what it was saved as
    yield architecture


def _check_finite(model: torch.nn.Module, name: str) -> None:
    for key, tensor in stored_tensors_of(model).items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # NaN and infinity show in the extremes, which take no memory beside the weights to find.
        if not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
            raise ModelError(
                f"{name}: tensor {key}",
                got="NaN or infinite weights",
                wanted="finite numbers",
                hint="Check the checkpoint.",
            )


@contextmanager
def _explained(name: str, hint: str = "") -> Iterator[None]:
    """Turn what transformers raises about a model that cannot be loaded into one paragraph."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {name} cannot be read: {first_line(error)}",
            hint="The file is damaged.",
        ) from error
    except ImportError as error:
        raise ModelError(
            f"{name} cannot be loaded: {first_line(error)}", hint="Install what is missing."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            hint = "If you trust it, let it run with --trust-remote-code."
        if not hint and Path(name).expanduser().is_dir():
            hint = (
                "The folder is incomplete, damaged, or of a kind that transformers does not know."
            )
        hint = hint or "Check the name and the connection to the hub, or give a local folder."
        raise ModelError(f"{name} cannot be loaded: {first_line(error)}", hint=hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars of transformers and the retries of the hub out of our own output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with quietened("huggingface_hub"):
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
