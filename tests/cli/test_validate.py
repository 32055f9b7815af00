import json

import pytest

from autocompress.cli.main import main

RECIPE = "version: 1\nlayers:\n  model.layers.0.mlp.up_proj: {method: quantize, bits: 4}\n"
SPACE = "version: 1\nname: mine\nmethods: {quantize: {bits: [4], group_sizes: [64]}}\n"


@pytest.fixture
def write(tmp_path):
    def write_text(text: str) -> str:
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return str(path)

    return write_text


def report(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["validate", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_spaces_of_the_package_are_valid(capsys):
    code, verdict = report(capsys, "quantize_only")
    assert code == 0
    assert (verdict["kind"], verdict["valid"], verdict["name"]) == (
        "search space",
        True,
        "quantize_only",
    )
    assert verdict["options"] > verdict["layers"] > 0


def test_text_says_what_the_file_is(capsys, write):
    assert main(["validate", write(SPACE)]) == 0
    assert "is a valid search space, mine: " in capsys.readouterr().out
    assert main(["validate", write(RECIPE)]) == 0
    assert "is a valid recipe of 1 layers: 1 x 4 bit." in capsys.readouterr().out


def test_every_error_in_a_table(capsys, write, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["validate", write("version: 1\nnam: x\nmethods: {quantise: {}}\n")]) == 2
    out = " ".join(capsys.readouterr().out.split())  # a long path wraps the title
    for text in (
        "line",
        "key",
        "got",
        "allowed",
        "nearest",
        "methods.quantise",
        "quantize",
        "3 to correct",
    ):
        assert text in out


@pytest.mark.parametrize(
    "text", ["a: [1\n", "- a\n", SPACE + "rules: 4\n", RECIPE + "  x: {method: quantise}\n"]
)
def test_errors_exit_with_2(capsys, write, text):
    code, verdict = report(capsys, write(text))
    assert code == 2
    assert not verdict["valid"]
    assert set(verdict["problems"][0]) == {"line", "key", "got", "allowed", "nearest"}


def test_recipe_against_a_model(capsys, write):
    model = ("--model", "autocompress-demo")
    assert report(capsys, write(RECIPE), *model)[0] == 0
    code, verdict = report(capsys, write(RECIPE.replace("up_proj", "up_porj")), *model)
    assert code == 2
    assert verdict["problems"][0]["nearest"] == "model.layers.0.mlp.up_proj"


def test_rules_that_match_nothing_are_errors_only_for_a_named_model(capsys, write):
    path = write(SPACE + "rules: [{match: 'transformer.h.*', min_bits: 4}]\n")
    code, verdict = report(capsys, path)
    assert code == 0
    assert "no layer of the bundled model" in verdict["notices"][0]
    code, verdict = report(capsys, path, "--model", "autocompress-demo")
    assert code == 2
    assert verdict["problems"][0]["line"] == 4


def test_layers_without_an_option_are_errors(capsys, write):
    code, verdict = report(capsys, write(SPACE.replace("[64]", "[128]")))
    assert code == 2
    assert "down_proj" in verdict["problems"][0]["key"]


def test_missing_file(capsys):
    assert main(["validate", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "Error: there is no file nowhere.yaml\n"


QCOMPRESS = "targets:\n- {path: '*.up_proj', decomp: SVD, ranks: 8, penalty: shannon}\n"


def test_a_recipe_in_other_words_is_printed_in_ours(capsys, write):
    assert main(["validate", write(QCOMPRESS + "budget: 4x\nspace: quantize_only\n")]) == 0
    out = capsys.readouterr().out
    assert "by 1 entries" not in out
    assert "at most 4x; healed with a penalty of 0.05 x shannon on *.up_proj" in out
    ours = write(out.partition("in our words:\n\n")[2])
    code, verdict = report(capsys, ours)
    assert (code, verdict["kind"]) == (0, "recipe")
    broken = QCOMPRESS + "- {path: x, decomp: TTM, ranks: 8}\n"
    assert main(["validate", write(broken)]) == 2
    assert "'*.up_proj': {method: svd, rank: 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "key"),
    [("budget: 40x\n", "budget"), ("space: quantize_onyl\n", "space"), ("budget: 4\n", "budget")],
)
def test_a_budget_out_of_reach_and_a_space_that_is_none_are_problems(capsys, write, more, key):
    text = RECIPE + "  '*.self_attn.*': {method: keep}\n" + more
    code, verdict = report(capsys, write(text), "--model", "autocompress-demo")
    assert code == 2
    (problem,) = verdict["problems"]
    assert (problem["line"], problem["key"]) == (5, key)
