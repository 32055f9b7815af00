"""What the commands do with texts, as they are typed: begin tokens, context, unknown tokens."""

from __future__ import annotations

import json
import random

import pytest

from autocompress.cli.main import main
from autocompress.export import verify
from tests.api.verifying import score_here
from tests.begin_token import make_begin_tokenizer
from tests.conftest import VOCABULARY, make_tiny_model

SPACE = "version: 1\nname: tiny\nmethods: {keep: true, quantize: {bits: [4], group_sizes: [16]}}\n"
TOKENS = 3_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny dense model whose tokenizer puts a begin token before texts, with a text."""
    place = tmp_path_factory.mktemp("own texts")
    make_tiny_model("llama").save_pretrained(place / "dense")
    make_begin_tokenizer().save_pretrained(place / "dense")
    (place / "tiny.yaml").write_text(SPACE)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=TOKENS)
    (place / "text.txt").write_text("\n".join(f"w{word}" for word in words))
    return place


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """Run a command in that folder: its exit code, and what it says or its JSON."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)

    def run(*words):
        code = main(list(words))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if code == 0 and "--json" in words else err

    return run


COMPRESS = ("compress", "dense", "--budget", "2x", "--space", "tiny.yaml", "--data", "text.txt")


def test_windows_start_with_the_begin_token_unless_told_otherwise(run, folder):
    _, begun = run(*COMPRESS, "--out", "small", "--overwrite", "--json")
    assert begun["begin_token"] == "<s>"
    _, plain = run(*COMPRESS, "--out", "plain", "--overwrite", "--no-bos", "--json")
    assert plain["begin_token"] is None
    assert begun["perplexity"] != plain["perplexity"]
    for out, options, report in (("small", (), begun), ("plain", ("--no-bos",), plain)):
        text = ("--data", "text.txt", "--part", "report")
        _, again = run("evaluate", out, *text, *options, "--json")
        assert again["perplexity"] == pytest.approx(report["perplexity"], rel=1e-5)
        assert again["begin_token"] == report["begin_token"]


def test_profile_says_the_begin_token(run):
    text = ("--data", "text.txt", "--context", "32")
    _, profile = run("profile", "dense", *text, "--space", "tiny.yaml", "--json")
    assert (profile["begin_token"], profile["layers"][0]["role"]) == ("<s>", "embedding")


def test_the_context_may_be_shorter(run):
    windows = [
        run("evaluate", "dense", "--data", "text.txt", "--no-bos", "--json", *more)[1]["tokens"]
        for more in ((), ("--context", "16"), ("--context", "9999"))
    ]
    assert windows == [TOKENS - 47, TOKENS - 188, TOKENS - 47]
    for command in (("evaluate", "dense"), (*COMPRESS[:-2], "--out", "x"), ("profile", "dense")):
        code, said = run(*command, "--data", "text.txt", "--context", "1")
        assert (code, "--context is too low: got 1, wanted at least 2" in said) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ("search", "--budget", "2x", "--model"),
        ("search", "--budget", "2x", "--dry-run", "--model"),
        ("compress", "--budget", "2x", "--out", "none"),
        ("profile",),
        ("evaluate",),
    ],
    ids=" ".join,
)
def test_tokens_beyond_the_vocabulary(command, run, folder):
    tokenizer = make_begin_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    make_tiny_model("llama").save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    (folder / "chat.txt").write_text("<|im_start|> " + (folder / "text.txt").read_text())
    code, said = run(*command, "chat", "--data", "chat.txt")
    assert code == 2
    assert f"holds tokens that the model has no rows for: got token {VOCABULARY}" in said
    assert "<|im_start|>" in said
    assert not (folder / "runs" / "chat-2x").exists()
