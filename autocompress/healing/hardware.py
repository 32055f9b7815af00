"""What a machine gives to healing: half precision, and memory that may not be enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from autocompress.errors import AutocompressError
from autocompress.requests.healing import HealSettings

OUT_OF_MEMORY = "can't allocate memory", "out of memory", "not enough memory"


def half_precision(device: torch.device) -> AbstractContextManager[object]:
    """bf16 products on accelerators that have them; on CPUs they are slower than fp32 for most."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Products in the type that a model is stored in, inside of ``half_precision`` too."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def explained_memory(settings: HealSettings) -> Iterator[None]:
    """Turn an error of too little memory into one that says what to lower.

    Raises:
        AutocompressError: there was too little.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(part in text for part in OUT_OF_MEMORY):
            raise
        raise AutocompressError(
            "there is not enough memory to heal this model",
            got=f"{settings.tokens} tokens a step, {settings.tokens_at_once or 'as many'} at once",
            hint="Lower --tokens-at-once, or freeze the codes with --train factors; what was "
            "healed so far is kept, and the model before healing is untouched.",
        ) from error
