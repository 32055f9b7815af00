from __future__ import annotations

import pytest
import torch

from autocompress.deploy import verify
from autocompress.deploy.verify import Verification, verify_folder
from autocompress.errors import StorageError
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.surgery.workbench import Workbench
from tests.deploy.exporting import export_tiny
from tests.mixed_plans import builder


@pytest.fixture
def windows():
    return Windows(torch.randint(3, 96, (100,), generator=torch.Generator().manual_seed(0)), 32)


@pytest.fixture
def tiny(tiny_llama, tiny_tokenizer, inputs_of, tmp_path):
    return export_tiny(tiny_llama, tiny_tokenizer, inputs_of(tiny_llama), tmp_path / "model")


def test_a_fresh_process_sees_what_was_measured(tiny, windows):
    workbench = Workbench(tiny.loaded.model)
    with workbench.applied(tiny.plan, builder(workbench)) as model:
        measured = score(model, windows)
    seen = verify_folder(
        tiny.report.folder,
        windows,
        figure=measured.figure,
        weight_bytes=tiny.report.weight_bytes,
    )
    assert seen.figure == pytest.approx(measured.figure, rel=1e-6)
    assert seen.tokens == measured.tokens == windows.tokens


@pytest.mark.parametrize(
    ("perplexity", "weight_bytes", "message"),
    [
        (100.0, 1000, None),
        (100.009, 1000, None),
        (100.02, 1000, "got 100"),
        (100.0, 1001, "another model"),
    ],
)
def test_a_difference_is_an_error(
    perplexity, weight_bytes, message, windows, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        verify, "score_in_fresh_process", lambda *_, **__: Verification(100.0, 96, 1000)
    )
    if message is None:
        verify_folder(tmp_path, windows, figure=perplexity, weight_bytes=weight_bytes)
    else:
        with pytest.raises(StorageError, match=message):
            verify_folder(tmp_path, windows, figure=perplexity, weight_bytes=weight_bytes)


@pytest.mark.parametrize("perplexity", [float("nan"), float("inf")])
def test_figures_that_are_no_numbers_never_agree(perplexity, windows, monkeypatch, tmp_path):
    monkeypatch.setattr(
        verify, "score_in_fresh_process", lambda *_, **__: Verification(100.0, 96, 1000)
    )
    with pytest.raises(StorageError, match="does not score what was measured"):
        verify_folder(tmp_path, windows, figure=perplexity)


def test_a_folder_that_does_not_load_is_an_error(windows, tmp_path):
    with pytest.raises(
        StorageError, match=r"does not load in a fresh process: .*a folder without a model"
    ):
        verify_folder(tmp_path, windows, figure=1.0)
