"""Bytes of a safetensors file from the names, types and shapes of its tensors, header included."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# In the order of safetensors' own enumeration: tensors lie in the file by descending type, then by
# name (safetensors 0.5, ``prepare`` in ``tensor.rs``). The second is the bytes of an element.
_TYPES: dict[torch.dtype, tuple[str, int]] = {
    torch.bool: ("BOOL", 1),
    torch.uint8: ("U8", 1),
    torch.int8: ("I8", 1),
    torch.float8_e5m2: ("F8_E5M2", 1),
    torch.float8_e4m3fn: ("F8_E4M3", 1),
    torch.int16: ("I16", 2),
    torch.uint16: ("U16", 2),
    torch.float16: ("F16", 2),
    torch.bfloat16: ("BF16", 2),
    torch.int32: ("I32", 4),
    torch.uint32: ("U32", 4),
    torch.float32: ("F32", 4),
    torch.float64: ("F64", 8),
    torch.int64: ("I64", 8),
    torch.uint64: ("U64", 8),
}
_ORDER = {word: place for place, (word, _) in enumerate(_TYPES.values())}
_SIZES = dict(_TYPES.values())
LENGTH = 8  # bytes that say how long the header is; it is padded to a multiple of as many
_METADATA = '"__metadata__":{"format":"pt"}'
OVERHEAD = 2 * LENGTH + len(_METADATA) + 2  # at most, beside the tensors and their entries
_LARGEST_OFFSET = 10**10 - 1  # of a file of at most 5 GB there are ten digits


class Entry(NamedTuple):
    """A tensor in a file: its name, safetensors' word for its type, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
        """What the header says of a tensor, stored in its own type or in another one."""
        word, _ = _TYPES[dtype or tensor.dtype]
        return cls(name, word, tuple(tensor.shape))

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * _SIZES[self.dtype]

    @property
    def most_bytes(self) -> int:
        """The same and its entry in the header, wherever in the file it lies."""
        return self.bytes + self.header_bytes(_LARGEST_OFFSET, _LARGEST_OFFSET)

    def header_bytes(self, start: int, end: int) -> int:
        """Bytes of its entry in the header, the comma after it included."""
        shape = ",".join(map(str, self.shape))
        name = len(self.name.encode())
        fixed = len('"":{"dtype":"","shape":[],"data_offsets":[,]},')
        return name + fixed + len(self.dtype) + len(shape) + len(f"{start}{end}")


def file_size(entries: Iterable[Entry]) -> int:
    """Bytes of a file of these tensors, as ``safetensors.torch.save_file`` writes it."""
    header, place = len(_METADATA) + 2, 0
    for entry in sorted(entries, key=lambda each: (-_ORDER[each.dtype], each.name)):
        end = place + entry.bytes
        header += entry.header_bytes(place, end)
        place = end
    return LENGTH + math.ceil(header / LENGTH) * LENGTH + place
