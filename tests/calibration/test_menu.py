from __future__ import annotations

import math
import weakref
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from autocompress.calibration import fitting as module
from autocompress.calibration import menu as menu_module
from autocompress.calibration.fitting import build_menu, most_at_once
from autocompress.calibration.menu import judge
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec, Role
from autocompress.surgery.native import NATIVE
from autocompress.surgery.workbench import Workbench
from tests.calibration.counting import METHODS, menu_with
from tests.deploy.exporting import export_tiny
from tests.mixed_plans import CHOICES, mixed_plan


def test_every_option_is_fitted_once_and_never_again(make_builder):
    builder = make_builder()
    menu = menu_with(builder)
    layers = builder.workbench.inventory.layers
    assert menu.options == len(METHODS) * len(layers)
    assert builder.fits == Counter({(s.name, m): 1 for s in layers for m in METHODS if m != Keep()})
    again = make_builder()
    assert menu_with(again) == menu
    assert again.fits.total() == 0


def test_what_an_allocation_may_choose_is_there_without_a_fit(make_builder):
    menu = menu_with(make_builder())
    builder = make_builder()
    for layer in menu.layers:
        for option in layer.undominated:
            if option.method != Keep():
                builder.build(layer.spec.name, option.method)
    assert builder.fits.total() == 0


def test_only_what_an_allocation_may_choose_stays_in_the_cache(make_builder, tmp_path):
    """Whatever the order of the options: some are beaten at once, some by a later one."""
    for folder, methods in (("cache", METHODS), ("reversed", METHODS[::-1])):
        builder = make_builder(folder=folder)
        menu = build_menu(builder, lambda _spec: methods, builder.workbench.inventory.layers)  # noqa: B023
        wanted = {
            builder.key(layer.spec.name, option.method)
            for layer in menu.layers
            for option in layer.undominated
            if option.method != Keep()
        }
        assert {path.stem for path in (tmp_path / folder / "layers").iterdir()} == wanted
        assert len(wanted) < menu.options - len(menu.layers)


def test_one_option_is_held_at_a_time(make_builder):
    builder, alive = make_builder(), []
    fit, most = builder.fit, 0

    def counted(name, method):
        nonlocal most
        layer = fit(name, method)
        alive.append(weakref.ref(layer))
        most = max(most, sum(each() is not None for each in alive))
        return layer

    builder.fit = counted
    menu_with(builder)
    assert len(alive) > len(METHODS)
    assert most == 1


def test_what_is_factorised_of_a_large_matrix_is_dropped_after_each_form(make_builder, monkeypatch):
    monkeypatch.setattr(module, "MOST_PARAMETERS_REMEMBERED", 0)
    methods = [Keep(), Svd(4), Svd(4, gram="shrunk"), Svd(6), Svd(4, gram="diagonal")]
    builder, seen = make_builder(), []
    fit = builder.fit

    def watched(name, method):
        seen.append({key[2] for key in builder.problem(name).memo if key[0] == "svd"})
        return fit(name, method)

    builder.fit = watched
    spec = builder.workbench.inventory.layers[1]
    small = build_menu(builder, lambda _spec: methods, [spec])
    assert all(len(grams) <= 1 for grams in seen)
    assert {"full"} in seen  # a second rank finds the decomposition of the first
    monkeypatch.undo()
    assert build_menu(make_builder(folder="other"), lambda _spec: methods, [spec]) == small


def test_as_many_matrices_are_fitted_side_by_side_as_fit_in_the_models_memory():
    specs = [LayerSpec("a", Role.UP, Kind.LINEAR, 1000, 1000)]
    assert most_at_once(specs, 10**10) == 166
    assert most_at_once(specs, 1) == 17  # a gibibyte even for a small model
    huge = [LayerSpec("a", Role.UP, Kind.LINEAR, 100_000, 10_000)]
    assert most_at_once([*specs, *huge], 10**10) == 1
    assert most_at_once([], 1) >= 1


def test_a_menu_that_was_cut_off_goes_on_where_it_was(make_builder):
    builder = make_builder()
    half = builder.workbench.inventory.layers[:3]
    build_menu(builder, lambda _spec: METHODS, half)
    again = make_builder()
    menu_with(again)
    assert not {name for name, _ in again.fits} & {spec.name for spec in half}
    assert again.fits


def test_undominated_options_increase_in_bytes_and_fall_in_loss_increase(make_builder):
    for layer in menu_with(make_builder()).layers:
        kept = layer.undominated
        assert [o.file_bytes for o in kept] == sorted({o.file_bytes for o in kept})
        assert [o.loss_increase for o in kept] == sorted(
            {o.loss_increase for o in kept}, reverse=True
        )
        for option in layer.options:
            assert any(
                o.file_bytes <= option.file_bytes and o.loss_increase <= option.loss_increase
                for o in kept
            )
        assert [o.bytes for o in layer.options] == sorted(o.bytes for o in layer.options)


def test_the_menu_states_exact_bytes_and_the_judgement_of_the_layer(make_builder):
    builder = make_builder()
    for layer in menu_with(builder).layers:
        for option in layer.options:
            assert option.bytes == option.method.cost(layer.spec) < option.file_bytes
            built = option.method.build(builder.problem(layer.spec.name))
            change = built.to_dense() - builder.problem(layer.spec.name).weight32
            expected = sum(
                0.5 * float(torch.trace(_full(t.rows) @ change @ _full(t.columns) @ change.T))
                for t in builder.metrics[layer.spec.name].terms
            )
            assert math.isclose(option.loss_increase, expected, rel_tol=1e-3, abs_tol=1e-9)


def _full(gram):
    return torch.diag(gram) if gram.ndim == 1 else gram


def test_a_kept_layer_does_no_loss_increase(make_builder):
    problem = make_builder().problem(make_builder().workbench.inventory.layers[1].name)
    fit = judge(problem, Keep().build(problem))
    assert fit.loss_increase == 0.0
    assert math.isclose(fit.cosine, 1.0, abs_tol=1e-6)


@pytest.mark.parametrize("at_once", [2**22, 200], ids=["whole", "in blocks"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_cosine_is_that_of_the_outputs(make_builder, monkeypatch, index, at_once):
    """Oracle: the outputs themselves, for inputs whose Gram matrix the metric holds."""
    monkeypatch.setattr(menu_module, "MOST_WEIGHTED", at_once)
    builder = make_builder()
    spec = builder.workbench.inventory.layers[index]
    generator = torch.Generator().manual_seed(2)
    if spec.kind is Kind.EMBEDDING:
        ids = torch.randint(0, spec.out_features, (50,), generator=generator)
        counts = torch.bincount(ids, minlength=spec.out_features).float()
        term = Curvature(counts / 50, torch.ones(spec.in_features))
    else:
        x = torch.randn(50, spec.in_features, generator=generator)
        term = Curvature(torch.ones(spec.out_features), x.T @ x / 50)
    problem = builder.workbench.problem(spec.name, Metric((term,)))
    layer = Svd(3, "plain").build(problem)
    compressed = layer.to_dense()
    if spec.kind is Kind.EMBEDDING:
        dense_out, out = problem.weight32[ids], compressed[ids]
    else:
        dense_out, out = x @ problem.weight32.T, x @ compressed.T
    expected = torch.cosine_similarity(dense_out.flatten(), out.flatten(), dim=0)
    assert 0.05 < float(expected) < 0.99
    fit = judge(problem, layer)
    assert_close(torch.tensor(fit.cosine), expected, rtol=1e-4, atol=1e-5)
    assert math.isclose(fit.loss_increase, problem.loss_increase(compressed), rel_tol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("plan", ["mixed", *(m for m in CHOICES if m != Keep())], ids=str)
def test_the_bytes_of_a_plan_bound_the_file(
    tiny_model, tiny_tokenizer, inputs_of, tmp_path, family, plan
):
    """The allocation spends ``rest_bytes`` and ``file_bytes``: the whole file must fit."""
    model = tiny_model(family)
    inventory = Workbench(model).inventory
    chosen = (
        mixed_plan(inventory)
        if plan == "mixed"
        else Plan.of({spec.name: plan for spec in inventory.layers})
    )
    export = export_tiny(model, tiny_tokenizer, inputs_of(model), tmp_path / "out", chosen)
    bound = inventory.rest_bytes + sum(
        NATIVE.matrix_bytes(chosen[s.name], s) for s in inventory.layers
    )
    assert export.report.weight_bytes == inventory.plan_bytes(chosen)
    assert export.report.weight_bytes == export.report.file_bytes <= bound


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_threads_side_by_side_make_the_same_menu(make_builder, two_threads):
    side_by_side = menu_with(make_builder())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert side_by_side == menu_with(make_builder(folder="other"))


def test_a_fit_that_fails_in_a_thread_is_heard_of(make_builder, two_threads):
    builder = make_builder()

    def fail(_name, _method):
        raise RuntimeError("no such fit")

    builder.fit = fail
    with pytest.raises(RuntimeError, match="no such fit"):
        menu_with(builder)
    assert torch.get_num_threads() == 2


def test_what_was_factorised_is_dropped_when_the_menu_is_done(make_builder):
    builder = make_builder()
    last = builder.workbench.inventory.layers[-1].name
    before = builder.problem(last)
    menu_with(builder)
    assert builder.problem(last) is not before
