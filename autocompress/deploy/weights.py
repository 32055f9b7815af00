"""The files of weights of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from autocompress.errors import StorageError

# Not model.safetensors: a loader that does not know autocompress must find no weights rather than
# unknown ones.
WEIGHTS = "autocompress.safetensors"
INDEX = f"{WEIGHTS}.index.json"
LARGEST_FILE = 5 * 10**9


def write_weights(
    tensors: dict[str, Tensor], folder: Path, *, largest_file: int = LARGEST_FILE
) -> str:
    """Write tensors to one file, or several and an index; return the file name to start from."""
    pattern = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=pattern, max_shard_size=largest_file
    )
    for file, names in split.filename_to_tensors.items():
        held = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(held, folder / file, metadata={"format": "pt"})
    if not split.is_sharded:
        return WEIGHTS
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / INDEX).write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return INDEX


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of an exported folder, without the index."""
    return sorted(folder.glob(f"{Path(WEIGHTS).stem}*.safetensors"))


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor on disk, by name, as the headers of the files say.

    Raises:
        StorageError: a file is cut off or is no safetensors file.
    """
    sizes: dict[str, int] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise StorageError(f"{path} is not a whole file of weights: {error}") from error
        header.pop("__metadata__", None)
        sizes |= {
            name: entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in header.items()
        }
        whole = (
            8
            + length
            + sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
        )
        if path.stat().st_size != whole:
            raise StorageError(
                f"{path} is cut off", got=f"{path.stat().st_size} bytes", wanted=f"{whole}"
            )
    return sizes
