#!/usr/bin/env bash
# lm-eval 0.4.13: with a tokenizer that puts a begin token before every text (as Llama's does), no
# value of HFLM's add_bos_token is right both for whole texts (loglikelihood_rolling, as in
# perplexity tasks) and for continuations of a context (loglikelihood, as in multiple choice).
#
#   None, True  Whole texts: the model is given the begin token twice, and the second one is scored
#               as if it were text. Continuations: one begin token.
#   False       Whole texts: one begin token, given and not scored. Continuations: none.
#
# prefix_token_id only changes the first of the two begin tokens. A way out is two runs: whole texts
# with add_bos_token=False, everything else without it.
#
# Exit code 0: seen as described. 1: the behaviour or a version is another one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -I -m pip install --quiet --disable-pip-version-check \
    lm-eval==0.4.13 torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 accelerate==1.15.0

cat >"$folder/finding.py" <<'PYTHON'
import logging
import math
import sys
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VERSION = "0.4.13"
BEGIN, END = 1, 2
WORDS = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat"]
CONTEXT, CONTINUATION = "the cat sat on", " a mat"
FIRST, LAST = [3, 4, 5, 6], [7, 8]  # CONTEXT and CONTINUATION without a begin token
TEXT = FIRST + LAST

# add_bos_token: what is given and scored for a whole text; for a continuation
EXPECTED = {
    None: (([BEGIN], [BEGIN, *TEXT]), ([BEGIN, *FIRST], LAST)),
    True: (([BEGIN], [BEGIN, *TEXT]), ([BEGIN, *FIRST], LAST)),
    False: (([BEGIN], TEXT), (FIRST, LAST)),
}


def tiny_tokenizer():
    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BEGIN)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def by_hand(model, given, scored):
    """Log-likelihood of the scored tokens behind the given ones, by the model alone."""
    ids = torch.tensor([given + scored])
    log_probabilities = model(ids).logits.log_softmax(-1)[0, len(given) - 1 : -1]
    return log_probabilities[range(len(scored)), scored].sum().item()


def run(harness, kind, *arguments):
    """The figure lm-eval returns, the token ids it scores, and the ids the model is given."""
    pairs, inputs = [], []
    score = harness._loglikelihood_tokens

    def watch(requests, **settings):
        pairs.extend((given, scored) for _, given, scored in requests)
        return score(requests, **settings)

    harness._loglikelihood_tokens = watch
    hook = harness.model.register_forward_pre_hook(
        lambda _, ids, named: inputs.append((ids[0] if ids else named["input_ids"])[0].tolist()),
        with_kwargs=True,
    )
    request = Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
    (figure,) = getattr(harness, kind)([request], disable_tqdm=True)
    hook.remove()
    harness._loglikelihood_tokens = score
    (pair,), (ids,) = pairs, inputs
    return figure if kind == "loglikelihood_rolling" else figure[0], pair, ids


def main():
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for package in ("lm-eval", "torch", "transformers", "tokenizers"):
        print(package, version(package))
    seen = {f"lm-eval is {VERSION}": version("lm-eval") == VERSION}
    model, tokenizer = tiny_model(), tiny_tokenizer()
    print(f"begin token {BEGIN}; ids of {CONTEXT!r} are {tokenizer(CONTEXT).input_ids}")
    begun = by_hand(model, [BEGIN], TEXT)
    continued = by_hand(model, [BEGIN, *FIRST], LAST)
    print(f"by hand, behind one begin token: text {begun:.4f}, continuation {continued:.4f}")
    for setting, expected in EXPECTED.items():
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=setting)
        right = []
        for name, kind, arguments, wanted, (given, scored) in (
            ("text", "loglikelihood_rolling", (CONTEXT + CONTINUATION,), begun, expected[0]),
            ("continuation", "loglikelihood", (CONTEXT, CONTINUATION), continued, expected[1]),
        ):
            figure, pair, ids = run(harness, kind, *arguments)
            right.append(math.isclose(figure, wanted, abs_tol=1e-3))
            print(
                f"add_bos_token={setting}, {name}: model is given {ids}, "
                f"scored are {pair[1]}: {figure:.4f}, {'right' if right[-1] else 'not right'}"
            )
            label = f"add_bos_token={setting}, {name}"
            seen[f"{label}: ids"] = pair == (given, scored) and ids == given + scored[:-1]
            seen[f"{label}: figure is of these ids"] = math.isclose(
                figure, by_hand(model, given, scored), abs_tol=1e-3
            )
        seen[f"add_bos_token={setting}: one of the two is right"] = sum(right) == 1

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, prefix_token_id=END)
    figure, pair, ids = run(harness, "loglikelihood_rolling", CONTEXT + CONTINUATION)
    print(f"prefix_token_id={END}, text: model is given {ids}, scored are {pair[1]}: {figure:.4f}")
    seen[f"prefix_token_id={END}: ids"] = pair == ([END], [BEGIN, *TEXT])

    changed = [label for label, holds in seen.items() if not holds]
    for label in changed:
        print(f"CHANGED: {label}")
    print("behaviour has changed" if changed else "seen as described: no setting is right for both")
    return 1 if changed else 0


sys.exit(main())
PYTHON

HF_HOME="$folder/huggingface" HF_HUB_OFFLINE=1 "$python" -I "$folder/finding.py"
