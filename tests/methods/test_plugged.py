"""Methods of other packages, through the entry point group ``autocompress.methods``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import ClassVar

import pytest

import autocompress
from autocompress.errors import AutocompressError, ConfigurationError, MethodError
from autocompress.methods.listing import Listable
from autocompress.space.document import read_document
from autocompress.space.method_keys import keys_of
from autocompress.space.recipe_file import read_recipe
from tests.api.tiny_folders import export_to
from tests.conftest import make_tiny_model
from tests.methods.matrices import spec_of

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from autocompress.errors import MethodError
from autocompress.methods import CompressedMatrix, LayerSpec, MatrixProblem, Method


class SignMatrix(CompressedMatrix):
    """One sign an element, a byte each, and a scale a block of rows."""

    def __init__(self, rows, columns, *, block, bias, dtype):
        super().__init__(rows, columns, bias=bias, dtype=dtype)
        self.block = block
        self.register_buffer("signs", torch.zeros(rows, columns, dtype=torch.int8))
        self.scales = nn.Parameter(torch.zeros(rows // block, dtype=dtype), requires_grad=False)

    def to_dense(self):
        return self.signs.float() * self.scales.float().repeat_interleave(self.block)[:, None]

    def multiply(self, x):
        return x @ self.to_dense().to(x.dtype).T

    def rows(self, ids):
        return self.to_dense()[ids].to(self.dtype)


@dataclass(frozen=True)
class Sign(Method):
    block: int
    name: ClassVar[str] = "sign"

    def __post_init__(self):
        if self.block < 1:
            raise MethodError("method sign, block", got=self.block, wanted="at least 1")

    def check(self, spec: LayerSpec):
        if spec.out_features % self.block:
            raise MethodError("block", got=self.block, wanted=f"a divisor of {spec.out_features}")

    def skeleton(self, spec: LayerSpec):
        dtype = getattr(torch, spec.dtype)
        return SignMatrix(*spec.shape, block=self.block, bias=spec.bias, dtype=dtype)

    def fit(self, problem: MatrixProblem):
        weight = problem.weight32
        scales = weight.abs().reshape(len(weight) // self.block, -1).mean(1)
        return {
            "signs": weight.sign().to(torch.int8),
            "scales": scales.to(problem.weight.dtype),
        }
'''
PROGRAM = """
import json
from pathlib import Path
import torch
import autocompress
from autocompress.space.recipe_file import load_recipe
from autocompress.space.space_file import load_space
from autocompress.deploy.exported import Export
from autocompress.surgery.compressed import Compressed
from autocompress.deploy.native import Native
from autocompress.methods.registry import BROKEN, PACKAGES
from autocompress.records import Kind, LayerSpec, Role
from autocompress.surgery.loading import load_model
from autocompress.surgery.workbench import Workbench
spec = LayerSpec("a", Role.UP, Kind.LINEAR, 24, 32)
try:
    load_space("wrong.yaml")
except Exception as error:
    wrong = str(error)
dense = load_model("dense")
one = autocompress.compress_layer(torch.nn.Linear(8, 16), "method: sign, block: 4")
bench, plan = Workbench(dense.model), load_recipe("recipe.yaml")
build = lambda name, method: method.build(bench.problem(name))
Path("signs").mkdir()
Native().write(Export(dense, bench, Compressed(plan), build), Path("signs"))
ids = torch.arange(3, 9)[None]
with torch.no_grad(), bench.applied(plan, build):
    wanted = dense.model(ids).logits
with torch.no_grad():
    same = torch.equal(autocompress.load("signs")[0](ids).logits, wanted)
facts = {
    "packages": PACKAGES,
    "broken": sorted(BROKEN),
    "options": [str(method) for method in load_space("space.yaml").options(spec)],
    "wrong": wrong,
    "same": same,
    "one": str(one.report),
}
Path("facts.json").write_text(json.dumps(facts))
"""
FILES = {
    "recipe.yaml": """\
version: 1
layers:
  model.layers.0.mlp.up_proj: {method: sign, block: 8}
""",
    "space.yaml": """\
version: 1
name: signs
methods:
  quantize: {bits: [8], group_sizes: [row]}
  sign: {block: [7, 8, 24]}
rules:
  - match: "no such"
    optional: true
    methods: [sign]
""",
    "wrong.yaml": "version: 1\nname: wrong\nmethods:\n  sign: {block: [many], size: [3]}\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where a command ran with a package of methods installed, and one that is broken."""
    place = tmp_path_factory.mktemp("plugged")
    export_to(place, make_tiny_model("llama"))
    for name, text in FILES.items():
        (place / name).write_text(text)
    (place / "site").mkdir()
    (place / "site" / "signs_of_weights.py").write_text(MODULE)
    info = place / "site" / "autocompress_signs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: autocompress-signs\nVersion: 1.2\n"
    )
    entries = """\
        [autocompress.methods]
        sign = signs_of_weights:Sign
        torn = no_such_module:Torn
        other = signs_of_weights:Sign
        svd = signs_of_weights:Sign
    """
    (info / "entry_points.txt").write_text(textwrap.dedent(entries))
    path = os.pathsep.join([str(place / "site"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=place,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (place / "stderr.txt").write_text(run.stderr)
    return place


def test_a_method_of_a_package_is_in_registry_spaces_recipes_and_exports(place):
    facts = json.loads((place / "facts.json").read_text())
    assert facts["packages"] == {"sign": "autocompress-signs"}
    assert facts["options"] == ["keep", "quantize 8 bit row", "sign block=8", "sign block=24"]
    assert facts["same"]
    assert facts["one"].startswith("sign block=4: ")
    assert "methods.sign.block[0]: got 'many'" in facts["wrong"]
    assert "methods.sign.size: got an unknown key" in facts["wrong"]
    config = json.loads((place / "signs" / "config.json").read_text())
    recipe = config["quantization_config"]["recipe"]
    assert recipe["packages"] == {"sign": "autocompress-signs"}
    assert recipe["layers"]["model.layers.0.mlp.up_proj"] == {"method": "sign", "block": 8}


def test_packages_that_cannot_be_used_are_said_and_stop_nothing(place):
    assert json.loads((place / "facts.json").read_text())["broken"] == ["other", "torn"]
    said = (place / "stderr.txt").read_text()
    assert "'torn' cannot be used: the package autocompress-signs has it, but loading" in said
    assert "the name of signs_of_weights:Sign is not 'other'" in said
    assert "'svd' of the package autocompress-signs is left out" in said


def test_without_the_package_an_export_and_its_recipe_name_it(place):
    with pytest.raises(AutocompressError, match="package autocompress-signs: install it"):
        autocompress.load(place / "signs")
    with pytest.raises(ConfigurationError, match="package autocompress-signs: install it"):
        read_recipe(read_document(place / "signs" / "recipe.yaml"))


@dataclass(frozen=True)
class Plain(Listable):
    """A method that says nothing of its keys."""

    block: int
    bits: int = 0
    name: ClassVar[str] = "plain"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise MethodError("method plain, block", got=self.block, wanted="at least 1")


def test_keys_of_a_space_are_the_settings_of_the_method():
    keys = keys_of(Plain).model_validate({"block": [4, 8], "bits": ["none", 2]})
    offered = keys.family().candidates(spec_of(8, 8))
    assert list(offered) == [Plain(4), Plain(4, 2), Plain(8), Plain(8, 2)]
    with pytest.raises(ValueError, match="settings that go together"):
        keys_of(Plain).model_validate({"block": [0]})
    some = keys_of(Plain).model_validate({"block": [0, 3]}).family()
    assert list(some.candidates(spec_of(8, 8))) == [Plain(3)]
