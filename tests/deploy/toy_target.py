"""A runtime that there is not: all that a further format needs, its line in ``TARGETS`` apart.

It opens codes of 4 and 8 bits outside the embedding, wants query, key and value of a block alike,
and keeps tensors in one file, each after a record of a fixed length.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import transformers
import yaml
from torch import Tensor

from autocompress.deploy.documents import RECIPE
from autocompress.deploy.exported import Export, ExportReport
from autocompress.deploy.format import Format
from autocompress.deploy.verify import give_score
from autocompress.methods.base import Method, stored_entries
from autocompress.methods.file_size import Entry
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.records import Kind, LayerSpec, Role
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.inventory import stored_tensors_of
from autocompress.surgery.workbench import Workbench

MODEL = "model.toy"
FRAME, RECORD = 256, 128  # bytes at the start of the file, and before each tensor
FUSED = (Role.QUERY, Role.KEY, Role.VALUE)


class Toy(Format):
    name: ClassVar[str] = "toy"
    opener: ClassVar[str] = "tests.deploy.toy_target"

    def refuses(self, method: Method, spec: LayerSpec) -> str | None:
        if spec.kind is Kind.EMBEDDING:
            return "it looks rows up in dense tables"
        if not isinstance(method, Quantize) or method.bits not in (4, 8):
            return "it opens codes of 4 and 8 bits"
        return None

    def grouped(self, specs: Sequence[LayerSpec]) -> tuple[tuple[str, ...], ...]:
        blocks: dict[int | None, list[str]] = {}
        for spec in specs:
            if spec.role in FUSED:
                blocks.setdefault(spec.depth, []).append(spec.name)
        return tuple(map(tuple, blocks.values()))

    def matrix_bytes(self, method: Method, spec: LayerSpec) -> int:
        return sum(RECORD + entry.bytes for entry in stored_entries(method, spec))

    def rest_bytes(self, tensors: Iterable[Entry]) -> int:
        return FRAME + sum(RECORD + entry.bytes for entry in tensors)

    def write_model(self, export: Export, folder: Path) -> ExportReport:
        loaded = export.loaded
        with (
            export.workbench.applied(export.compressed, export.build) as model,
            (folder / MODEL).open("wb") as file,
        ):
            tensors = stored_tensors_of(model)
            file.write(b"toy".ljust(FRAME))
            for name, tensor in tensors.items():
                file.write(_record(name, tensor))
                file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        loaded.model.config.save_pretrained(folder)
        size = (folder / MODEL).stat().st_size
        return ExportReport(folder, size, size, len(tensors))

    def how_to_load(self, own_code: bool) -> str:
        return "Serve it with `toy serve FOLDER`.\n"

    def call_to_load(self, folder: Path, own_code: bool) -> str:
        return f"toy serve {folder}"


def _record(name: str, tensor: Tensor) -> bytes:
    known = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
    return json.dumps(known).encode().ljust(RECORD)


def _read(path: Path) -> dict[str, Tensor]:
    tensors, content = {}, path.read_bytes()[FRAME:]
    while content:
        name, dtype, shape = json.loads(content[:RECORD])
        empty = torch.empty(shape, dtype=getattr(torch, dtype))
        end = RECORD + empty.nbytes
        values = torch.frombuffer(bytearray(content[RECORD:end]), dtype=empty.dtype)
        tensors[name], content = values.view(shape), content[end:]
    return tensors


def main(place: str, ids: str, context: str, _opening: str) -> None:
    folder = Path(place)
    tensors = _read(folder / MODEL)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(tensors, strict=False)
    plan = Plan.from_recipe(yaml.safe_load((folder / RECIPE).read_text()))
    codes = {name: each for name, each in tensors.items() if name not in model.state_dict()}

    def build(name: str, method: Method) -> None:
        raise KeyError(name)  # all there is to place has been read

    with Workbench(model).applied(Compressed(plan, codes), build) as opened, torch.no_grad():
        give_score(opened, (folder / MODEL).stat().st_size, ids, context)


if __name__ == "__main__":
    main(*sys.argv[1:])
