"""A model that is in memory already, made ready to be compressed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocompress.errors import ConfigurationError, DataError, ModelError
from autocompress.evaluation.corpus import PARTS
from autocompress.evaluation.encoding import LEAST_TOKENS
from autocompress.methods.target import Target
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import OwnContent, Session, check_named
from autocompress.store import CACHE, Cache
from autocompress.surgery.loading import LoadedModel, fingerprint, is_exported
from autocompress.surgery.native import NATIVE

Content = str | Sequence[str] | Tensor
_DENSE = "a dense model with its weights in memory, such as from_pretrained gives"


class MissingTokenizer:
    """Stands in for the tokenizer of a model that was given without one; it knows no tokens."""

    all_special_ids: tuple[int, ...] = ()

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Name tokens, which have no names here."""
        return ["" for _ in ids]

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to encode a text.

        Raises:
            DataError: always.
        """
        raise DataError(
            "there is a text to read and no tokenizer to read it with",
            wanted="tokenizer=, or token ids",
            hint="Pass the model's tokenizer as tokenizer=AutoTokenizer.from_pretrained(...), "
            "or the text as token ids: calibration_data=ids (and report_data=other_ids to measure "
            "perplexities), integer tensors [tokens] or [windows, tokens].",
        )


@contextmanager
def session_in_memory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    request: SessionRequest,
    own: OwnContent,
    *,
    parts: Sequence[str] = PARTS,
    target: Target = NATIVE,
) -> Iterator[Session]:
    """Make a model in memory ready; on exit its modules are in the mode they were in.

    Args:
        model: the dense model.
        tokenizer: what the texts are encoded with, if there are texts.
        request: which texts to use, and where the cache is.
        own: what is used in place of the texts.
        parts: the texts that will be needed.
        target: the runtime that the model is compressed for.

    Raises:
        DataError: one of these texts is not named.
        ModelError: the model cannot be compressed as it is.
    """
    check_compressible(model)
    source = getattr(model.config, "_name_or_path", "") or type(model).__name__
    check_named(request, source, parts, own)
    # Statistics need gradients, also where the caller has turned them off.
    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        reader = cast(PreTrainedTokenizerBase, tokenizer or MissingTokenizer())
        loaded = LoadedModel(model, reader, source, fingerprint(model))
        if tokenizer is None:  # nothing says what its texts begin with
            request = replace(request, bos=False)
        cache = Cache.of_model(Path(request.runs_dir) / CACHE, loaded.fingerprint, source)
        yield Session(loaded, request, cache, own=own, target=target)


def check_compressible(model: PreTrainedModel) -> None:
    """Make sure that a model in memory is dense, whole and on one device.

    Raises:
        ModelError: it is not; the message says what to do.
    """
    kind = type(model).__name__
    if is_exported(model):
        raise ModelError(f"the {kind} is compressed already", wanted=_DENSE)
    if getattr(model, "hf_quantizer", None) is not None:
        method = getattr(model, "quantization_method", "another library")
        raise ModelError(
            f"the {kind} is quantized already",
            got=f"quantized by {getattr(method, 'value', method)}",
            wanted=_DENSE,
            hint="Load it without quantization_config.",
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if "meta" in devices:
        raise ModelError(
            f"the {kind} has no weights",
            got="parameters on the meta device",
            wanted=_DENSE,
            hint="Load the weights first, without offloading them.",
        )
    if len(devices) > 1:
        raise ModelError(
            f"the {kind} is spread over several devices",
            got=", ".join(devices),
            wanted="one device",
            hint='Load it with device_map={"": device}, or move it with model.to(device).',
        )


def own_content(sources: Mapping[str, Content | None]) -> tuple[dict[str, str], OwnContent]:
    """Sort what was given for each part into sources to read and content to use as it is.

    Args:
        sources: by part a source of text, texts, token ids ``[n]`` or ``[windows, n]``, or
            ``None``.

    Returns:
        The sources by part, and the content.

    Raises:
        DataError: ids that are no integers, too few, or the same for two parts.
        ConfigurationError: something else.
    """
    named: dict[str, str] = {}
    texts: dict[str, str] = {}
    tokens: dict[str, Tensor] = {}
    for part, content in sources.items():
        if content is None:
            continue
        if isinstance(content, str):
            named[part] = content
        elif isinstance(content, Tensor):
            tokens[part] = _checked_ids(content, part)
        elif isinstance(content, Sequence) and all(isinstance(text, str) for text in content):
            texts[part] = "\n\n".join(content)
        else:
            raise ConfigurationError(
                f"{part}_data is nothing that can be read",
                got=type(content).__name__,
                wanted="a source (a file, hub/name:config:split), a list of texts, or a tensor of "
                "token ids",
            )
    if len(tokens) > 1 and len({tuple(ids.tolist()) for ids in tokens.values()}) < len(tokens):
        raise DataError(
            "the token ids of two parts are the same",
            got=", ".join(f"{part}_data" for part in tokens),
            wanted="tokens that have nothing in common",
        )
    return named, OwnContent(texts, tokens)


def _checked_ids(ids: Tensor, part: str) -> Tensor:
    wanted = f"at least {LEAST_TOKENS} integers, [tokens] or [windows, tokens]"
    if ids.dtype.is_floating_point or ids.dtype in (torch.bool, torch.complex64):
        raise DataError(f"{part}_data holds no token ids", got=f"{ids.dtype}", wanted=wanted)
    flat = ids.detach().reshape(-1).cpu().to(torch.int64)
    if len(flat) < LEAST_TOKENS:
        raise DataError(f"{part}_data is too short", got=f"{len(flat)} tokens", wanted=wanted)
    if int(flat.min()) < 0:
        raise DataError(f"{part}_data holds no token ids", got=int(flat.min()), wanted="0 or more")
    return flat


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def kept_in(runs_dir: str | Path | None) -> Iterator[Path]:
    """Give the folder of the runs, for ``None`` one that is removed afterwards."""
    if runs_dir is not None:
        yield Path(runs_dir)
        return
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        yield Path(folder)
