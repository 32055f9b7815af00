from __future__ import annotations

import pytest
import torch

import autocompress
from autocompress.errors import ConfigurationError, DataError, ModelError, RecipeError
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from tests.api.tiny_compression import token_ids, words


def no_weights(model):
    with torch.device("meta"):
        return type(model)(model.config)


def compressed(model):
    plan = Plan.of({"model.embed_tokens": Quantize(8, 16)})
    ids = token_ids(1)
    return autocompress.compress(
        model, plan, calibration_data=ids, measure=False, runs_dir=None
    ).model


@pytest.mark.parametrize(
    ("make", "error", "words_in_it"),
    [
        (no_weights, ModelError, "meta device"),
        (compressed, ModelError, "compressed already"),
        (lambda model: model.model.layers, ConfigurationError, "got ModuleList"),
    ],
)
def test_what_cannot_be_compressed_is_refused(make, error, words_in_it, run, tiny_llama):
    with pytest.raises(error, match=words_in_it):
        run(make(tiny_llama), budget="3x")


@pytest.mark.parametrize(
    ("options", "error", "words_in_it"),
    [
        ({}, ConfigurationError, "neither a recipe, a budget nor a quality"),
        ({"budget": "small"}, ConfigurationError, "budget"),
        ({"recipe": 7}, ConfigurationError, "got int"),
        ({"recipe": {"version": 1, "layers": {"x": {"method": "keep"}}}}, RecipeError, "x"),
        ({"recipe": {"layers": {}}}, RecipeError, "version"),
        ({"budget": "3x", "space": "none"}, ConfigurationError, "none"),
        ({"budget": "3x", "calibration_data": None}, DataError, "no text is named"),
        ({"budget": "3x", "calibration_data": words(1)}, DataError, "tokenizer="),
        ({"budget": "3x", "calibration_data": token_ids(1, 9)}, DataError, "9 tokens"),
        ({"budget": "3x", "calibration_data": token_ids(1) * 1.0}, DataError, "float32"),
        ({"budget": "3x", "calibration_data": token_ids(1) + 90}, DataError, "vocabulary"),
        ({"budget": "3x", "calibration_data": token_ids(1) - 90}, DataError, "0 or more"),
        ({"budget": "3x", "calibration_data": 3}, ConfigurationError, "calibration_data"),
        ({"budget": "3x", "report_data": token_ids(1)}, DataError, "the same"),
        ({"budget": "3x", "report_data": token_ids(1) + 90}, DataError, "vocabulary"),
        ({"budget": "3x", "device": "cuda"}, ConfigurationError, "device"),
        ({"budget": "3x", "out": "somewhere"}, ConfigurationError, "tokenizer="),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_begun(
    options, error, words_in_it, run, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words_in_it) as caught:
        run(tiny_llama, **options)
    assert str(caught.value).count("\n") <= 2  # the errors of a recipe are a line each
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_texts_that_are_used_twice_are_refused(run, tiny_llama, tiny_tokenizer):
    with pytest.raises(DataError, match="overlap"):
        run(
            tiny_llama,
            budget="3x",
            tokenizer=tiny_tokenizer,
            calibration_data=words(1),
            report_data=words(1),
        )


def test_a_tokenizer_beside_a_name_is_refused(run, tiny_tokenizer):
    with pytest.raises(ConfigurationError, match="tokenizer"):
        run(None, budget="3x", tokenizer=tiny_tokenizer)
