"""Where a healing run is kept between two processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autocompress.atomic_write import written_whole
from autocompress.errors import ConfigurationError, StorageError

FACTS = "healing"


class Checkpoint:
    """One file that holds how far a run has come; written whole or not at all.

    Args:
        path: the file.
        identity: what the run depends on, by name. A file of another run is an error, not taken for
            this one and not overwritten.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity))

    def keep(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace what is kept.

        Raises:
            StorageError: it cannot be written.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        record = json.dumps({"identity": self.identity, "facts": facts})
        try:
            with written_whole(self.path) as temporary:
                save_file(held, temporary, metadata={FACTS: record})
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"the checkpoint of healing {self.path} cannot be written: {error}",
                hint="Free some space; the model before healing is untouched.",
            ) from error

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept, or ``None``.

        Raises:
            ConfigurationError: it is of another run.
            StorageError: it cannot be read.
        """
        return self._read(whole=True)

    def check(self) -> None:
        """Refuse a file of another run before any work is done, without reading its tensors.

        Raises:
            ConfigurationError: it is of another run.
            StorageError: it cannot be read.
        """
        self._read(whole=False)

    def _read(self, *, whole: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise ConfigurationError(
                "the checkpoint of healing is a folder", got=str(self.path), wanted="a file"
            )
        try:
            with safe_open(self.path, "pt") as file:
                record = json.loads(file.metadata()[FACTS])
                names = file.keys() if whole else ()
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the checkpoint of healing {self.path} cannot be read: {error}",
                hint="Remove it to heal from the start.",
            ) from error
        theirs = record["identity"]
        for name in sorted({*theirs, *self.identity}):
            if theirs.get(name) != self.identity.get(name):
                raise ConfigurationError(
                    f"the checkpoint {self.path} is of another run of healing: {name} differs",
                    got=theirs.get(name),
                    wanted=str(self.identity.get(name)),
                    hint="Name another file, or repeat the settings that it was made with.",
                )
        return tensors, record["facts"]

    def remove(self) -> None:
        """Forget the run."""
        self.path.unlink(missing_ok=True)
