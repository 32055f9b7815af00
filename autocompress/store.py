"""Content-addressed store of what is computed once: statistics, built layers and their figures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autocompress.atomic_write import written_whole
from autocompress.errors import StorageError

CACHE = "cache"  # in the folder of runs
NOTE = "model.json"  # in the folder of a model: what it is
logger = logging.getLogger(__name__)


def content_key(*parts: object) -> str:
    """Hash of plain values: the address of what is computed from them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def tensor_key(tensor: Tensor) -> str:
    """Hash of a tensor's shape, type and bytes."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if flat.numel():  # viewing an empty tensor as bytes is refused
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


class Cache:
    """Files under one folder, named by what they hold. Entries are written whole or not at all.

    An entry that cannot be read is removed with a warning, and computed again.

    Args:
        root: the folder; made when missing.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the cache folder {root} cannot be made: {error.strerror}",
                hint="Name a folder you may write to with --runs-dir.",
            ) from error

    @classmethod
    def of_model(cls, folder: Path, fingerprint: str, model: str) -> Cache:
        """The cache of one model in a folder that holds those of several.

        Args:
            folder: ``runs/cache``.
            fingerprint: of the model.
            model: what a person called it.

        Raises:
            StorageError: the folder cannot be written.
        """
        cache = cls(folder / fingerprint)
        cache._write(cache.root / NOTE, lambda path: path.write_text(json.dumps({"model": model})))
        return cache

    def tensors(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """Return the tensors kept under a key, memory-mapped, or ``None``."""
        path = self.root / kind / f"{key}.safetensors"
        if not path.exists():
            return None
        try:
            self._mark_used(path)
            return load_file(path)
        except (SafetensorError, OSError) as error:
            self._discard(path, error)
            return None

    def keep_tensors(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key."""
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._write(
            self.root / kind / f"{key}.safetensors", lambda path: save_file(contiguous, path)
        )

    def drop_tensors(self, kind: str, key: str) -> None:
        """Remove the tensors kept under a key, if they are there."""
        (self.root / kind / f"{key}.safetensors").unlink(missing_ok=True)

    def record(self, kind: str, key: str) -> Any:
        """Return the JSON value kept under a key, or ``None``."""
        path = self.root / kind / f"{key}.json"
        if not path.exists():
            return None
        try:
            self._mark_used(path)
            return json.loads(path.read_text())
        except (ValueError, OSError) as error:
            self._discard(path, error)
            return None

    def keep_record(self, kind: str, key: str, value: object) -> None:
        """Keep a JSON value under a key."""
        self._write(
            self.root / kind / f"{key}.json", lambda path: path.write_text(json.dumps(value))
        )

    @staticmethod
    def _mark_used(path: Path) -> None:
        """Note that an entry was used; where that cannot be written it looks older than it is."""
        with suppress(OSError):
            os.utime(path)

    @staticmethod
    def _discard(path: Path, error: Exception) -> None:
        logger.warning("the cache entry %s cannot be read (%s); it is computed again", path, error)
        path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, write: Callable[[Path], object]) -> None:
        try:
            with written_whole(path) as temporary:
                write(temporary)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"the cache file {path} cannot be written: {error}",
                hint="Free some space or name another folder with --runs-dir; "
                "what is finished is kept.",
            ) from error
