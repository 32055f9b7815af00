"""What the commands do with texts, as they are typed: begin tokens, context, unknown tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import autocompress
from autocompress.cli.main import main
from autocompress.deploy import verify
from tests.api.verifying import score_here
from tests.begin_token import make_begin_tokenizer
from tests.conftest import VOCABULARY, make_tiny_model

SPACE = "version: 1\nname: tiny\nmethods: {keep: true, quantize: {bits: [4], group_sizes: [16]}}\n"
TOKENS = 3_000
LOW_RANK = "version: 1\nlayers: {model.embed_tokens: {method: svd, rank: 12}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny dense model whose tokenizer puts a begin token before texts, with a text."""
    place = tmp_path_factory.mktemp("own texts")
    make_tiny_model("llama").save_pretrained(place / "dense")
    make_begin_tokenizer().save_pretrained(place / "dense")
    (place / "tiny.yaml").write_text(SPACE)
    (place / "low rank.yaml").write_text(LOW_RANK)
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


def test_the_perplexity_is_that_of_texts_behind_a_begin_token(run):
    """Each window starts with the token, which is given: transformers' own loss does the same."""
    _, seen = run("evaluate", "dense", "--data", "text.txt", "--json")
    model, tokenizer = (
        kind.from_pretrained("dense") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = tokenizer(Path("text.txt").read_text(), return_tensors="pt")["input_ids"]
    begin, rest = ids[:, :1], ids[:, 1:]
    assert begin.item() == tokenizer.bos_token_id
    losses = torch.tensor(0.0)
    with torch.no_grad():
        for window in rest.split(model.config.max_position_embeddings - 1, dim=1):
            whole = torch.cat([begin, window], dim=1)
            losses += model(whole, labels=whole).loss * window.shape[1]
    assert seen["perplexity"] == pytest.approx(float((losses / TOKENS).exp()), rel=1e-5)
    assert seen["tokens"] == rest.shape[1] == TOKENS


def test_the_row_of_the_begin_token_counts_for_more_than_rare_ones(run):
    often = [100 if word < 10 else 1 for word in range(VOCABULARY - 3)]
    words = random.Random(0).choices(range(VOCABULARY - 3), often, k=TOKENS)
    Path("few words.txt").write_text("\n".join(f"w{word}" for word in words))
    command = ("compress", "dense", "--recipe", "low rank.yaml", "--data", "few words.txt")
    assert run(*command, "--out", "low rank", "--overwrite")[0] == 0
    ids = torch.arange(VOCABULARY)
    ours, dense = (
        autocompress.load(folder)[0].get_input_embeddings()(ids).detach()
        for folder in ("low rank", "dense")
    )
    errors = (ours - dense).norm(dim=1) / dense.norm(dim=1)
    assert errors[1] < 0.92 * errors[13:].median()


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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("search", "--budget", "2x", "--model", "dense"), "to calibrate on and select on and"),
        (
            ("search", "--model", "dense", "--calibration-data", "text.txt"),
            "or --selection-data and --report-data",
        ),
        (("search", "--dry-run", "--model", "dense"), "to calibrate on and select on and"),
        (("compress", "dense", "--budget", "2x", "--out", "x"), "to calibrate on and report on"),
        (
            ("compress", "dense", "--budget", "2x", "--out", "x", "--calibration-data", "text.txt"),
            "to report on, and dense",
        ),
        (("profile", "dense", "--no-bos"), "to calibrate on, and dense is not the bundled model"),
        (("evaluate", "dense"), "to report on, and dense is not the bundled model"),
        (("evaluate", "dense", "--against", "dense"), "to report on"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_model_of_ones_own_needs_a_text(command, words, run):
    code, said = run(*command)
    assert code == 2
    for each in (words, "--data bundled takes the texts that come with autocompress"):
        assert each in said
    assert ("; or --" in said) == (command[0] != "evaluate")  # which has no source of a part alone


def test_the_bundled_texts_may_be_asked_for(run):
    code, seen = run("evaluate", "dense", "--data", "bundled", "--tokens", "300", "--json")
    assert (code, seen["data"], seen["tokens"]) == (0, "bundled report text", 300)


def test_an_exported_folder_knows_its_texts(run, folder, monkeypatch):
    command = (*COMPRESS, "--out", "known", "--context", "16", "--no-bos", "--overwrite", "--json")
    _, report = run(*command)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.chdir(elsewhere)
    _, again = run("evaluate", "../known", "--json")
    assert again["perplexity"] == pytest.approx(report["perplexity"], rel=1e-5)
    assert again["begin_token"] is None
    assert again["data"] == f"{folder / 'text.txt'} (report part)"
    _, begun = run("evaluate", "../known", "--bos", "--context", "64", "--json")
    assert begun["begin_token"] == "<s>"
    options = ("--model", "../dense", "--by", "method", "--json")
    code, found = run("attribute", "../known", *options)
    assert (code, found["text"]) == (0, "selection")
    (folder / "text.txt").rename(folder / "moved.txt")
    try:
        code, said = run("evaluate", "../known")
    finally:
        (folder / "moved.txt").rename(folder / "text.txt")
    assert code == 2
    assert "the report text that the model was made with cannot be read: no such data" in said
    assert "--data" in said


def test_compressed_texts_and_tables(run, folder):
    import gzip

    import pyarrow
    from pyarrow import parquet

    text = (folder / "text.txt").read_text()
    (folder / "text.gz").write_bytes(gzip.compress(text.encode()))
    parquet.write_table(pyarrow.table({"content": [text]}), folder / "a table.parquet")
    perplexities = [
        run("evaluate", "dense", "--data", source, "--json")[1]["perplexity"]
        for source in ("text.txt", "text.gz", "a table.parquet:content")
    ]
    assert len(set(perplexities)) == 1
