"""Inputs of matrices are those that the whole model gives them, block by block or not."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
import transformers
from torch.testing import assert_close

from autocompress.calibration.blocks import block_paths
from autocompress.healing.inputs import MatrixInputs
from autocompress.surgery.inventory import take_inventory
from tests.calibration.chains import Between, Chain
from tests.conftest import VOCABULARY

BATCHES = [torch.randint(3, VOCABULARY, (2, n)) for n in (9, 9, 5)]


def whole(model, name, ids):
    """What a matrix is given in a pass of the whole model."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    return seen[0].flatten(0, -2).float()


def matrices(model):
    """Names of the matrices, but embeddings, in the order of their use."""
    return [spec.name for spec in take_inventory(model).layers if "embed" not in spec.name]


@pytest.mark.parametrize("family", ["llama_untied", "gpt2", "opt"])
def test_each_is_given_what_the_whole_model_gives_it_also_after_changes(family, tiny_model):
    model = tiny_model(family)
    names = [name for name in matrices(model) if ".0." in name or ".1." in name]
    with closing(MatrixInputs(model, block_paths(model), BATCHES)) as inputs:
        assert inputs.why_whole is None
        for name in names:
            for batch, ids in enumerate(BATCHES):
                assert_close(inputs.of(name, batch), whole(model, name, ids))
            with torch.no_grad():
                model.get_submodule(name).weight.mul_(1.1)
    assert model.config.use_cache


def test_what_is_in_no_block_is_given_its_inputs_too(tiny_model):
    model = tiny_model("llama_untied")
    with closing(MatrixInputs(model, block_paths(model), BATCHES)) as inputs:
        assert_close(inputs.of("lm_head", 2), whole(model, "lm_head", BATCHES[2]))


def test_matrices_before_the_blocks_may_be_replaced_too():
    """Such as facebook/opt-350m has: embeddings narrower than the hidden states."""
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        do_layer_norm_before=False,
    )
    model = transformers.OPTForCausalLM(config).eval()
    names = [name for name in matrices(model) if "project_in" in name or "q_proj" in name]
    assert len(names) == 3
    with closing(MatrixInputs(model, block_paths(model), BATCHES)) as inputs:
        for name in names:
            assert inputs.why_whole is None
            assert_close(inputs.of(name, 1), whole(model, name, BATCHES[1]))
            with torch.no_grad():
                model.get_submodule(name).weight.mul_(1.5)


@pytest.mark.parametrize(("kind", "alone"), [(Chain, True), (Between, False)])
def test_a_model_that_is_no_chain_is_run_from_its_beginning(kind, alone):
    model, batches = kind(), [ids % 16 for ids in BATCHES]
    with closing(MatrixInputs(model, block_paths(model), batches)) as inputs:
        assert (inputs.why_whole is None) == alone
        for name in ("blocks.0.linear", "blocks.2.linear"):
            assert_close(inputs.of(name, 1), whole(model, name, batches[1]))


def test_blocks_run_as_often_in_a_deeper_model(tiny_model):
    """A block runs once for each of its matrices, and once more for the next block."""
    model, runs = tiny_model("llama_untied"), []
    first = model.model.layers[0]
    with closing(MatrixInputs(model, block_paths(model), BATCHES[:1])) as inputs:
        first.input_layernorm.register_forward_hook(lambda *_: runs.append(1))
        for name in matrices(model):
            inputs.of(name, 0)
    assert len(runs) == 7 + 1 + 1  # its own, on to the next, and the head's whole pass


def test_announced_matrices_take_one_run_of_their_block(tiny_model):
    model, runs = tiny_model("llama_untied"), []
    names = [name for name in matrices(model) if "gate" not in name]
    expected = {name: [whole(model, name, ids) for ids in BATCHES] for name in names}
    with closing(MatrixInputs(model, block_paths(model), BATCHES, unchanging=names[3:])) as inputs:
        model.model.layers[-1].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
        for name in names[3:]:
            for batch in range(len(BATCHES)):
                assert_close(inputs.of(name, batch), expected[name][batch])
    assert len(runs) == len(BATCHES) * (1 + 1)  # its own, and the head's whole pass
