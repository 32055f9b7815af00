"""Checkpoints that another library has quantized: told apart before transformers loads them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from autocompress.errors import ModelError
from autocompress.surgery.quantizer import QUANT_METHOD

_NAMES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "hqq": "HQQ",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
}


def foreign_method(config: Any) -> str | None:
    """What a checkpoint is quantized by, in words; ``None`` where it is dense or ours."""
    settings = _settings(config)
    method = str(settings.get("quant_method") or ("bitsandbytes" if _bits(settings) else ""))
    if not method or method == QUANT_METHOD:
        return None
    bits = _bits(settings)
    return f"{_NAMES.get(method, method)}{f' to {bits} bits' if bits else ''}"


def prepare(config: Any, name: str, *, dequantize: bool) -> bool:
    """Make sure that a quantized checkpoint is to be made dense, and that transformers can.

    Args:
        config: of the checkpoint; asks transformers for dense weights afterwards, where that is how
            they are had.
        name: what the user called the model.
        dequantize: whether it is to be made dense.

    Returns:
        Whether the loaded model must be told to ``dequantize()``.

    Raises:
        ModelError: it is not to be, or cannot be.
    """
    method = foreign_method(config)
    if method is None:
        return False
    while_loading, afterwards = _ways(_settings(config))
    if not (while_loading or afterwards):
        raise ModelError(
            f"{name} is quantized already, by {method}",
            wanted="a dense model",
            hint="Name the one it was made from: transformers cannot make this kind dense again.",
        )
    if not dequantize:
        raise ModelError(
            f"{name} is quantized already, by {method}",
            wanted="a dense model",
            hint="Name the one it was made from, or let transformers make this one dense again "
            "with --dequantize (dequantize=True): what rounding has lost stays lost, and bytes "
            "count from the dense model that comes out.",
        )
    if while_loading:
        _check_one_scheme(_settings(config), name)
        config.quantization_config = dict(_settings(config)) | {"dequantize": True}
    return not while_loading


def _settings(config: Any) -> Mapping[str, Any]:
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings is not None:
            return settings if isinstance(settings, Mapping) else settings.to_dict()
    return {}


def _bits(settings: Mapping[str, Any]) -> int | None:
    for bits, name in ((4, "load_in_4bit"), (8, "load_in_8bit")):
        if settings.get(name):
            return bits
    stated = settings.get("bits")
    return stated if isinstance(stated, int) else None


def _ways(settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether transformers can make it dense while it loads it, and afterwards."""
    key = str(settings.get("quant_method") or "bitsandbytes")
    if key == "bitsandbytes":
        key += f"_{_bits(settings) or 8}bit"
    tables: tuple[dict[str, Any], ...] = (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING)
    config, quantizer = (table.get(key) for table in tables)
    if config is None or quantizer is None:
        return False, False
    while_loading = "dequantize" in inspect.signature(config).parameters
    return while_loading, quantizer._dequantize is not HfQuantizer._dequantize


def _check_one_scheme(settings: Mapping[str, Any], name: str) -> None:
    """Refuse what transformers 5.24 reads as noise: it decodes every layer by one group's scheme.

    Raises:
        ModelError: compressed-tensors of several widths.
    """
    groups = settings.get("config_groups") or {}
    schemes = {str(group.get("weights")) for group in groups.values() if isinstance(group, Mapping)}
    if len(schemes) > 1:
        raise ModelError(
            f"{name} has {len(schemes)} kinds of quantized weights, which transformers cannot make "
            "dense again",
            wanted="one kind",
            hint="Name the dense model it was made from.",
        )
