"""A kind of model that is judged in another way takes its own file and a line in the registry."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from autocompress.calibration.statistics import collect_statistics
from autocompress.cli.front_table import front_table
from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.evaluation.latency import Latency
from autocompress.evaluation.objective import Objective, Rows
from autocompress.evaluation.objectives import OBJECTIVES, objective_for
from autocompress.evaluation.scoring import Teacher, divergence_sum, score, scores
from autocompress.evaluation.windows import Windows
from autocompress.healing.losses import Losses
from autocompress.judging.front import front_to_dict
from autocompress.judging.picking import pick
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.pictures.front_picture import picture_of
from autocompress.records import Gauge
from autocompress.studies.study import GAUGE_SETTING
from autocompress.surgery.workbench import Workbench
from autocompress.tracking.run_data import trial_data
from tests.conftest import VOCABULARY, make_tiny_model
from tests.healing.plans import building
from tests.studies.study_fixtures import study_of, trial

CONTEXT, WINDOWS = 16, 12


class Sentences:
    """Mean embeddings of the dense model, of length one."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.filled = embeddings, 0

    def add(self, outputs: Tensor, /) -> None:
        self.embeddings[self.filled : self.filled + len(outputs)] = outputs
        self.filled += len(outputs)

    def divergence(self, start: int, outputs: Tensor, /) -> Tensor:
        return 1 - (self.embeddings[start : start + len(outputs)] * outputs).sum(-1)

    def tensors(self) -> dict[str, Tensor]:
        return {"embeddings": self.embeddings}


class Similarity(Objective):
    """Cosine between a window's mean hidden state and the dense model's."""

    name: ClassVar[str] = "sentence encoder"
    gauge: ClassVar[Gauge] = Gauge(
        "similarity", "distance", "distance", "Cosine-Distance", "", exponential=False, form=".5f"
    )

    def serves(self, model: Any) -> bool:
        return getattr(model.config, "model_type", None) == "bert"

    def check_scorable(self, model: Any, windows: Windows) -> None:
        del model, windows

    def width(self, model: Any) -> int:
        return int(model.config.hidden_size)

    def output_of(self, returned: Any) -> Tensor | None:
        return returned.last_hidden_state.mean(1, keepdim=True)

    def compared(self, length: int, given: int) -> range:
        del length, given
        return range(1)

    def prepared(self, outputs: Tensor) -> Tensor:
        return torch.nn.functional.normalize(outputs.float(), dim=-1)

    def rows(self, count: int, width: int, device: torch.device, *, training: bool = False) -> Rows:
        del training
        return Sentences(torch.empty(count, width, device=device))

    def restored(self, tensors: Mapping[str, Tensor], *, training: bool = False) -> Rows:
        del training
        return Sentences(tensors["embeddings"])

    def drawn_loss(self, outputs: Tensor, draws: torch.Generator) -> Tensor:
        return (self.prepared(outputs) * torch.randn(outputs.shape, generator=draws)).sum()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(
        "autocompress.evaluation.objectives.OBJECTIVES", [Similarity(), *OBJECTIVES]
    )


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def windows(encoder):
    ids = torch.randint(
        3, VOCABULARY, (CONTEXT * WINDOWS,), generator=torch.Generator().manual_seed(1)
    )
    return objective_for(encoder).prepare(ids, CONTEXT)


def plan_of(workbench: Workbench, bits: int) -> Plan:
    blocks = [spec.name for spec in workbench.inventory.layers if spec.depth is not None]
    return Plan.of(dict.fromkeys(blocks, Quantize(bits, 16)))


def test_the_model_says_which_objective_it_has(encoder):
    assert objective_for(encoder).name == "sentence encoder"
    assert objective_for(make_tiny_model("llama")).gauge.figure == "perplexity"


def test_scores_are_by_window_and_in_stages(encoder, windows):
    teacher = Teacher.of(encoder, windows)
    assert (teacher.own_score.figure, teacher.own_score.divergence) == (1.0, 0.0)
    workbench = Workbench(encoder)
    with workbench.applied(plan_of(workbench, 3), building(workbench)) as model:
        stages = list(scores(model, windows, teacher, (4,)))
        with torch.no_grad():
            after = torch.stack([model(w[None]).last_hidden_state.mean(1)[0] for w in windows])
    with torch.no_grad():
        before = torch.stack([encoder(w[None]).last_hidden_state.mean(1)[0] for w in windows])
    cosines = torch.nn.functional.cosine_similarity(before, after)
    assert [stage.tokens for stage in stages] == [4, WINDOWS]
    assert stages[-1].figure == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert stages[-1].loss == stages[-1].divergence == pytest.approx(1 - stages[-1].figure)
    assert stages[-1].windows.divergence == pytest.approx((1 - cosines).tolist(), abs=1e-6)
    again = Teacher.restored(teacher.objective, windows, teacher.tensors())
    assert score(encoder, windows, again).figure == pytest.approx(1, abs=1e-6)


def test_statistics_predict_its_divergence(encoder, windows):
    """The second-order prediction of small noise on one matrix, against what it comes to."""
    specs = [spec for spec in Workbench(encoder).inventory.layers if spec.depth is not None]
    batches, notes = [window[None] for window in windows] * 20, []
    metrics = collect_statistics(encoder, specs, batches, note=notes.append)
    assert not notes  # block by block
    teacher = Teacher.of(encoder, windows)
    ratios = []
    for spec in specs:
        weight = encoder.get_submodule(spec.name).weight
        kept = weight.data.clone()
        noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
        change = 0.02 * kept.std() * noise
        weight.data = kept + change
        seen = score(encoder, windows, teacher).divergence
        weight.data = kept
        ratios.append(metrics[spec.name].loss_increase(change) / seen)
    # Less than it comes to: what the tokens of a window have in common adds up in their mean.
    assert 0.25 < statistics.median(ratios) < 1.5


def test_what_it_differentiates_and_what_healing_lowers_is_its_divergence(encoder, windows):
    teacher = Teacher.of(encoder, windows)
    workbench = Workbench(encoder)
    with workbench.applied(plan_of(workbench, 3), building(workbench)) as model:
        seen = score(model, windows, teacher).divergence
        with torch.no_grad():
            outputs = teacher.objective.output_of(model(torch.stack(list(windows))))
        outputs = outputs.flatten(0, 1).requires_grad_()
    total = divergence_sum(teacher, 0, outputs)
    total.backward()
    assert float(total.detach()) / WINDOWS == pytest.approx(seen, rel=1e-4)
    assert outputs.grad.abs().sum() > 0
    loss = Losses(encoder, encoder, lm=0.5).on_outputs(torch.stack(list(windows)))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def study(encoder, windows):
    """Two measured trials, on the selection text alone."""
    workbench = Workbench(encoder)
    text = ScoredText("selection", windows, Teacher.of(encoder, windows))
    evaluator = Evaluator(workbench, building(workbench), Latency(1.0, 0.1))
    trials = []
    for number, bits in enumerate((3, 8)):
        plan = plan_of(workbench, bits)
        size = workbench.inventory.plan_bytes(plan)
        measured = evaluator.measure(plan, text, latency=False)
        trials.append(replace(trial(number, 0.0, size, plan=plan), selection=measured))
    dense = evaluator.measure(Plan(()), text, latency=False)
    made = study_of(*trials)
    return replace(
        made,
        settings=made.settings | {GAUGE_SETTING: asdict(objective_for(encoder).gauge)},
        specs=workbench.inventory.layers,
        dense_bytes=workbench.inventory.dense_bytes,
        dense_selection=dense,
        dense_report=replace(dense, text="report"),
    )


def test_people_read_its_words(study):
    table = front_table(study)
    headers = [column.header for column in table.columns]
    assert headers[2:5] == ["similarity", "increase", "Cosine-Distance"]
    figures = [str(cell) for cell in table.columns[2].cells]
    assert figures[0] == "1.00000"
    assert [float(figure.rstrip("*")) < 1 for figure in figures[1:]] == [True, True]
    point = json.loads(json.dumps(front_to_dict(study)))["front"][-1]
    assert point["similarity"] == pytest.approx(1 - point["cosine-distance"])
    assert point["selection_cosine-distance"] == point["cosine-distance"]
    assert "perplexity" not in json.dumps(front_to_dict(study) | {"budget": {}})
    assert "similarity" in picture_of(study).dense_text
    assert "similarity" in trial_data(study, study.trials[0]).metrics


def test_the_higher_its_figure_the_better(study):
    rough, fine = (each.selection.figure for each in study.trials)
    assert rough < fine < 1
    assert pick(study, "smallest", worst_figure=rough - 1e-6).number == 0
    assert pick(study, "smallest", worst_figure=(rough + fine) / 2).number == 1
