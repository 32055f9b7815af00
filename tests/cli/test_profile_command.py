"""``profile`` as it is typed, on models that do unusual things."""

from __future__ import annotations

import json
import random

from autocompress.cli.main import main
from tests.architectures import ARCHITECTURES
from tests.conftest import VOCABULARY

SPACE = "version: 1\nname: tiny\nmethods: {keep: true, quantize: {bits: [8], group_sizes: [row]}}\n"


def test_a_model_may_write_into_what_its_embedding_returns(tmp_path, monkeypatch, capfd):
    """CTRL multiplies its token vectors in place."""
    monkeypatch.chdir(tmp_path)
    ARCHITECTURES["ctrl"].save(tmp_path / "my ctrl")
    words = random.Random(0).choices(range(VOCABULARY - 3), k=1_200)
    (tmp_path / "my text.txt").write_text("\n".join(f"w{word}" for word in words))
    (tmp_path / "my space.yaml").write_text(SPACE)
    options = ["--data", "my text.txt", "--space", "my space.yaml", "--json"]
    assert main(["profile", "my ctrl", *options]) == 0
    layers = json.loads(capfd.readouterr().out)["layers"]
    assert len(layers) == 2 * 6 + 1  # of each block, and the embedding, which the head is tied to
    assert all(layer["options"][0]["loss_increase"] > 0 for layer in layers)
