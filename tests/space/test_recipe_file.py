import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import RecipeError, StorageError
from autocompress.methods.cp import Cp
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.document import read_document
from autocompress.space.problems import RecipeFileError
from autocompress.space.recipe_file import check_recipe, load_recipe, read_recipe, save_recipe
from autocompress.space.space_file import load_space
from tests.llama_specs import llama_specs

SPECS = llama_specs()
SPACE = load_space()
plans = st.tuples(*(st.sampled_from(SPACE.options(spec)) for spec in SPECS)).map(
    lambda methods: Plan(
        tuple((spec.name, method) for spec, method in zip(SPECS, methods, strict=True))
    )
)


@given(plan=plans)
def test_round_trip_through_a_file(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    save_recipe(plan, path, model="me/model", fingerprint="ab12", measurement={"perplexity": 12.5})
    assert load_recipe(path) == plan
    checked = check_recipe(plan, SPECS)
    assert checked.plan == plan
    assert checked.notices == ()


def test_header_is_kept_and_optional(tmp_path):
    plan = Plan.of({"a": Quantize(4), "b": Keep()})
    save_recipe(
        plan,
        tmp_path / "deep" / "r.yaml",
        model="me/model",
        fingerprint="ab12",
        measurement={"kl": 0.25},
    )
    recipe = read_recipe(read_document(tmp_path / "deep" / "r.yaml"))
    assert (recipe.model, recipe.fingerprint, recipe.measurement) == (
        "me/model",
        "ab12",
        {"kl": 0.25},
    )
    save_recipe(plan, tmp_path / "bare.yaml")
    assert set(yaml.safe_load((tmp_path / "bare.yaml").read_text())) == {"version", "layers"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bare.yaml", "deep"]


def test_words_for_zero(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "version: 1\nlayers:\n"
        "  a: {method: quantize, bits: 4, group_size: row}\n"
        "  b: {method: svd, rank: 8, bits: none}\n"
        "  c: {method: tensor_train, ranks: [4], out_modes: [2, 8], in_modes: [4, 4]}\n"
    )
    train = TensorTrain((4,), (2, 8), (4, 4))
    assert load_recipe(path) == Plan.of({"a": Quantize(4, 0), "b": Svd(8), "c": train})


def test_all_errors_at_once(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "version: 1\nlayers:\n"
        "  a: {method: quantise, bits: 4}\n"
        "  b: {method: quantize, bit: 4}\n"
        "  c: {method: svd, rank: 8.0}\n"
        "  d: 4\n"
        "  e: {bits: 4}\n"
        "  f: {method: quantize, bits: 5}\n"
        "  f: {method: keep}\n"
    )
    with pytest.raises(RecipeFileError) as caught:
        load_recipe(path)
    found = {(problem.line, problem.key, problem.nearest) for problem in caught.value.problems}
    assert {
        (3, "layers.a.method", "quantize"),
        (4, "layers.b.bit", "bits"),
        (5, "layers.c.rank", ""),
        (6, "layers.d", ""),
        (7, "layers.e.method", ""),
        (8, "layers.f.bits", ""),
        (9, "layers.f", ""),
    } <= found
    assert isinstance(caught.value, RecipeError)


def test_a_pattern_without_its_quotes_is_told_to_have_them(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nlayers:\n  a: {method: sparse, pattern: 2:4}\n")
    with pytest.raises(RecipeFileError, match="allowed: '2:4', unstructured"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("method", "used"),
    [
        (Svd(300), Svd(256)),
        (QuantizePlusLowRank(2, 0, 300), QuantizePlusLowRank(2, 0, 256)),
        (
            TensorTrain((16, 88), (64, 2, 2), (2, 2, 176)),
            TensorTrain((16, 64), (64, 2, 2), (2, 2, 176)),
        ),
        (
            Tucker((16, 1, 2, 2), (16, 16), (16, 44)),
            Tucker((4, 1, 2, 2), (16, 16), (16, 44)),
        ),
        (Cp(5000, (16, 16), (16, 44)), Cp(4096, (16, 16), (16, 44))),
    ],
    ids=lambda method: method.name,
)
def test_ranks_that_cannot_exist_are_lowered_with_a_notice(method, used):
    name = "model.layers.1.mlp.down_proj"
    checked = check_recipe(Plan.of({name: method}), SPECS)
    assert checked.plan[name] == used
    (notice,) = checked.notices
    assert name in notice
    assert f"of {method} do" in notice
    assert f"used {used}" in notice


@pytest.mark.parametrize(
    "text",
    ["", "layers: {}\n", "version: 3\nlayers: {a: {method: keep}}\n", "version: 1\nlayers: [a]\n"],
)
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeFileError):
        load_recipe(tmp_path / "r.yaml")


def test_recipe_for_another_model_names_every_stranger():
    plan = Plan.of(
        {
            "model.layers.0.mlp.up_porj": Quantize(4),
            "model.layers.7.mlp.up_proj": Quantize(4),
            "lm_head": Keep(),
            "model.layers.0.mlp.down_proj": Quantize(4, 128),
        }
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(plan, SPECS)
    assert isinstance(caught.value, RecipeFileError)
    nearest = [problem.nearest for problem in caught.value.problems]
    assert nearest[0] == "model.layers.0.mlp.up_proj"
    assert nearest[1].endswith(".mlp.up_proj")
    assert nearest[2] == "model.embed_tokens"
    assert "g128" in caught.value.problems[3].got


@pytest.mark.parametrize(
    "method",
    [TensorTrain((200,), (26, 26), (16, 16)), Cp(4200, (26, 26), (16, 16))],
    ids=lambda method: method.name,
)
def test_modes_that_miss_are_corrected_with_a_notice(method):
    name = "model.layers.0.mlp.gate_proj"
    checked = check_recipe(Plan.of({name: method}), SPECS)
    spec = next(spec for spec in SPECS if spec.name == name)
    checked.plan[name].check(spec)
    (notice,) = checked.notices
    assert name in notice
    assert "do not fit" in notice


def test_unwritable_place_is_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_recipe(Plan.of({"a": Keep()}), tmp_path / "file" / "r.yaml")
