"""Activations of a whole calibration text, kept in a file without a name instead of in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor

from autocompress.errors import StorageError


class SpilledTensors:
    """Tensors by key in a temporary file. The system drops it with the process, however that ends.

    Args:
        folder: on whose disk the file is; the system's folder for temporary files when left out.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see close
        self._places: dict[Hashable, tuple[int, Tensor]] = {}

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        """Write a tensor behind the others, or over the one of this key if it is of its form.

        Raises:
            StorageError: the disk is full.
        """
        place, like = self._places.get(key, (0, None))
        same = like is not None and (like.shape, like.dtype) == (tensor.shape, tensor.dtype)
        start = self._file.seek(place) if same else self._file.seek(0, 2)
        plain = tensor.detach().cpu().contiguous()
        rest = plain.reshape(-1).view(torch.uint8).numpy().data
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise StorageError(
                f"activations cannot be written to a temporary file: {error.strerror}",
                hint="Free some space, name another folder with --runs-dir, or calibrate on less "
                "text.",
            ) from error
        self._places[key] = start, torch.empty_like(tensor, device="meta")

    def __getitem__(self, key: Hashable) -> Tensor:
        """Read a tensor into memory; on the CPU, whatever device it came from."""
        start, like = self._places[key]
        tensor = torch.empty(like.shape, dtype=like.dtype)
        rest = tensor.view(-1).view(torch.uint8).numpy().data
        self._file.seek(start)
        while rest:
            rest = rest[self._file.readinto(rest) :]
        return tensor

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
