from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import yaml

import autocompress
from autocompress.api.exporting import is_finished
from autocompress.deploy import verify
from autocompress.deploy.verify import Verification
from autocompress.driver import rounds
from autocompress.driver.prices import Slope
from autocompress.errors import (
    BudgetUnreachable,
    ConfigurationError,
    StorageError,
)
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.surgery.inventory import stored_bytes, take_inventory
from tests.api.tiny_compression import token_ids, words
from tests.api.verifying import score_here


def perplexity(model, ids):
    return score(model.eval(), Windows(ids, 64)).figure


def test_a_budget_gives_a_model_and_a_report(run, tiny_llama):
    dense = stored_bytes(tiny_llama)
    before = perplexity(tiny_llama, token_ids(2))
    model, report = run(tiny_llama, budget="3x")
    assert report.dense_bytes == dense
    assert report.bytes == stored_bytes(model) <= dense // 3
    assert report.ratio == dense / report.bytes >= 3
    assert report.quality.dense_figure == pytest.approx(before, rel=1e-6)
    assert report.quality.measured.figure == pytest.approx(
        perplexity(model, token_ids(2)), rel=1e-6
    )
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape == (1, 5)
    assert perplexity(tiny_llama, token_ids(2)) == before


def test_the_report_lists_every_matrix(run, tiny_llama):
    report = run(tiny_llama, budget="3x").report
    specs = take_inventory(tiny_llama).layers
    assert [row["name"] for row in report.table()] == [spec.name for spec in specs]
    assert sum(row["loss_increase"] for row in report.table()) == report.loss_increase > 0
    rows = report.table()
    inside = sum(row["dense_bytes"] - row["bytes"] for row in rows)
    assert 0 <= inside - (report.dense_bytes - report.bytes) < 400 * len(specs)  # of the header
    assert report.parameters == report.dense_parameters == sum(row["parameters"] for row in rows)
    assert Plan.from_recipe(report.to_dict()["recipe"]) == report.plan
    json.dumps(report.to_dict(), allow_nan=False)
    worst = max(report.layers, key=lambda layer: layer.loss_increase)
    assert worst.name in str(report)
    assert f"{report.ratio:.3g} times less" in str(report)
    assert len(str(report).splitlines()) <= 6


def test_a_larger_budget_costs_less(run, tiny_llama):
    loss_increases = [
        run(tiny_llama, budget=budget, measure=False).report.loss_increase
        for budget in ("2x", "3x", "4x")
    ]
    assert loss_increases == sorted(loss_increases)
    assert loss_increases[0] < loss_increases[-1]


@pytest.mark.parametrize("form", ["plan", "mapping", "file"])
def test_a_recipe_comes_in_several_forms(form, run, tiny_llama, tmp_path):
    plan = Plan.of({spec.name: Quantize(8, 16) for spec in take_inventory(tiny_llama).layers[1:]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plan.to_recipe(), sort_keys=False))
    given = {"plan": plan, "mapping": plan.to_recipe(), "file": tmp_path / "recipe.yaml"}[form]
    model, report = run(tiny_llama, given)
    assert report.plan == plan
    assert stored_bytes(model) == take_inventory(tiny_llama).plan_bytes(plan)
    assert report.layers[0].settings == Keep().to_dict()  # not named, so kept
    assert report.layers[0].loss_increase == 0 < report.layers[1].loss_increase
    assert report.quality.measured.figure == pytest.approx(report.quality.dense_figure, rel=0.01)


def test_texts_are_read_with_the_tokenizer(run, tiny_llama, tiny_tokenizer):
    texts = {"calibration_data": words(1), "report_data": words(2)}
    from_words = run(tiny_llama, budget="3x", tokenizer=tiny_tokenizer, **texts).report
    from_ids = run(tiny_llama, budget="3x", tokenizer=tiny_tokenizer).report
    assert from_words.plan == from_ids.plan
    assert from_words.quality == from_ids.quality


def test_the_model_keeps_its_mode_and_asks_for_gradients_as_before(run, tiny_llama):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    tiny_llama.model.norm.weight.requires_grad_(True)
    modes = {name: module.training for name, module in tiny_llama.named_modules()}
    model, _ = run(tiny_llama, budget="3x")
    assert {name: module.training for name, module in tiny_llama.named_modules()} == modes
    assert not any(module.training for module in model.modules())
    assert tiny_llama.model.norm.weight.requires_grad
    assert not tiny_llama.lm_head.weight.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_collected_where_the_caller_has_turned_them_off(mode, run, tiny_llama):
    wanted = run(tiny_llama, budget="3x", runs_dir=None).report
    with mode():
        report = run(tiny_llama, budget="3x", runs_dir=None).report
    assert report == wanted


def test_in_place_the_model_itself_is_changed(run, tiny_llama):
    other = copy.deepcopy(tiny_llama)
    model, report = run(tiny_llama, budget="3x", inplace=True)
    assert model is tiny_llama
    assert stored_bytes(model) == report.bytes
    ids = token_ids(3)[None, :20]
    with torch.no_grad():
        wanted = run(other, budget="3x").model(ids).logits
        torch.testing.assert_close(model(ids).logits, wanted, rtol=0, atol=0)


def test_nothing_is_kept_without_a_folder_of_runs(run, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    model, _ = run(tiny_llama, budget="3x", runs_dir=None)
    assert set(tmp_path.rglob("*")) == before
    assert math.isfinite(perplexity(model, token_ids(2)))


def test_without_a_text_to_report_on_nothing_is_measured(run, tiny_llama):
    report = run(tiny_llama, budget="3x", report_data=None).report
    assert report.quality is None
    assert "not measured" in str(report)
    assert run(tiny_llama, budget="3x", measure=False).report.quality is None


def test_of_all_allocations_the_one_that_diverges_least_is_taken(run, tiny_llama, monkeypatch):
    """Whatever the options are said to cost inside a compressed model."""
    names = [spec.name for spec in take_inventory(tiny_llama).layers]
    more = {name: 3.0 if index % 2 else -0.75 for index, name in enumerate(names)}
    predicted = run(tiny_llama, budget="5x", pricing_tokens=0).report
    seen = {}
    price_options, divergence_of = rounds.price_options, rounds.divergence_of

    def misled(plan, *rest):
        found = price_options(plan, *rest)
        slopes = {
            name: [
                Slope(*[more[name] * slope.loss_increase] * 2, slope.loss_increase)
                for slope in several
            ]
            for name, several in found.slopes.items()
        }
        return replace(found, slopes=slopes)

    def noted(plan, *rest):
        seen[plan] = divergence_of(plan, *rest)
        return seen[plan]

    monkeypatch.setattr(rounds, "price_options", misled)
    monkeypatch.setattr(rounds, "divergence_of", noted)
    taken = run(tiny_llama, budget="5x", measure=False).report.plan
    assert len(seen) > 1
    assert predicted.plan in seen
    assert seen[taken] <= (1 + rounds.LEAST_GAIN) * min(seen.values())


def test_a_budget_that_cannot_be_met_says_what_can_be_reached(run, tiny_llama):
    with pytest.raises(BudgetUnreachable) as caught:
        run(tiny_llama, budget="100x")
    reachable = caught.value.wanted.rpartition("(")[2].rstrip(")")
    assert run(tiny_llama, budget=reachable, measure=False).report.ratio >= float(reachable[:-1])


def test_a_folder_is_written_from_a_name_or_from_memory(
    run, tiny_llama, tiny_tokenizer, monkeypatch, tmp_path
):
    monkeypatch.setattr(verify, "score_in_fresh_process", score_here)
    tiny_llama.save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    plan = Plan.of({"model.embed_tokens": Quantize(4, 16)})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plan.to_recipe(), sort_keys=False))
    named = run(str(tmp_path / "dense"), str(tmp_path / "recipe.yaml"), tmp_path / "named")
    assert named.report.folder == tmp_path / "named"
    assert is_finished(tmp_path / "named")
    assert not is_finished(tmp_path / "dense")
    model, _ = autocompress.load(tmp_path / "named")
    ids = token_ids(3)[None, :20]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, named.model(ids).logits, rtol=0, atol=0)
    facts = named.report.to_dict()
    assert {"folder", "weight_bytes", "file_bytes", "perplexity", "dense_perplexity"} <= set(facts)
    with pytest.raises(ConfigurationError, match="compressed already"):
        run(str(tmp_path / "named"), plan)
    with pytest.raises(ConfigurationError, match="--overwrite"):
        run(tiny_llama, plan, tmp_path / "named", tokenizer=tiny_tokenizer)
    run(tiny_llama, plan, tmp_path / "named", tokenizer=tiny_tokenizer, overwrite=True)
    again, _ = autocompress.load(tmp_path / "named")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_a_folder_that_does_not_score_as_measured_is_not_finished(
    run, tiny_llama, tiny_tokenizer, monkeypatch, tmp_path
):
    monkeypatch.setattr(verify, "score_in_fresh_process", lambda *_, **__: Verification(1.0, 1, 1))
    with pytest.raises(StorageError, match="loads as another model"):
        run(tiny_llama, Plan(()), tmp_path / "out", tokenizer=tiny_tokenizer)
    assert not is_finished(tmp_path / "out")
