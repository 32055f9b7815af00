"""Studies with believable numbers, made without a model: a small Llama under many plans."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import (
    PERPLEXITY,
    Kind,
    LayerSpec,
    Measurement,
    Role,
    Skipped,
    WindowScores,
)
from autocompress.studies.study import GAUGE_SETTING, StudyRecord, TrialRecord
from autocompress.units import Limits

DENSE_BYTES, DENSE_LATENCY = 16_000_000, 6.0
SELECTION_PERPLEXITY, REPORT_PERPLEXITY = 16.2, 17.1
LINEAR_LAYERS = {
    "self_attn.q_proj": (Role.QUERY, 256, 256),
    "self_attn.k_proj": (Role.KEY, 128, 256),
    "self_attn.o_proj": (Role.OUTPUT, 256, 256),
    "mlp.up_proj": (Role.UP, 704, 256),
    "mlp.down_proj": (Role.DOWN, 256, 704),
}


def llama_specs(depth: int = 4) -> tuple[LayerSpec, ...]:
    embedding = LayerSpec(
        "model.embed_tokens", Role.EMBEDDING, Kind.EMBEDDING, 4096, 256, tied=("lm_head",)
    )
    linear = [
        LayerSpec(f"model.layers.{block}.{name}", role, Kind.LINEAR, rows, columns, depth=block)
        for block in range(depth)
        for name, (role, rows, columns) in LINEAR_LAYERS.items()
    ]
    return (embedding, *linear)


SPECS = llama_specs()


def uniform_plan(method: Method, **others: Method) -> Plan:
    """``method`` everywhere, except for layers whose name ends as the keyword says."""
    return Plan.of(
        {
            spec.name: next(
                (other for end, other in others.items() if spec.name.endswith(end)), method
            )
            for spec in SPECS
        }
    )


def measurement(
    increase: float,
    size: int,
    latency_ms: float | None,
    plan: Plan | None = None,
    *,
    text: str = "selection",
) -> Measurement:
    dense = SELECTION_PERPLEXITY if text == "selection" else REPORT_PERPLEXITY
    loss = math.log(dense) + increase * (1 if text == "selection" else 1.04)
    return Measurement(
        figure=math.exp(loss),
        loss=loss,
        divergence=abs(increase) * 0.9,
        tokens=8192 if text == "selection" else 59_432,
        bytes=size,
        latency_ms=latency_ms,
        latency_spread_ms=None if latency_ms is None else 0.02 * latency_ms,
        text=text,
        device="cpu (2 threads)",
        plan_hash="" if plan is None else plan.hash,
        cosine=1 - abs(increase) / 4,
    )


def trial(
    number: int,
    increase: float,
    size: int,
    latency_ms: float | None = None,
    *,
    plan: Plan | None = None,
    label: str = "knobs",
    phase: str = "knobs",
    state: str = "complete",
    report: bool = False,
    **fields: Any,
) -> TrialRecord:
    """One trial whose plan, unless given, is unlike that of any other number."""
    plan = plan or Plan.of({SPECS[0].name: Svd(rank=number + 1)})
    done = state == "complete"
    return TrialRecord(
        number=number,
        phase=phase,
        label=label,
        state=state,
        plan=plan,
        bytes=size,
        selection=measurement(increase, size, latency_ms, plan) if done else None,
        report=measurement(increase, size, latency_ms, plan, text="report")
        if done and report
        else None,
        seconds=3.2,
        **fields,
    )


def study_of(
    *trials: TrialRecord, limits: Limits | None = None, folder: Path = Path("runs/fixture")
) -> StudyRecord:
    return StudyRecord(
        name=folder.name,
        folder=folder,
        model="autocompress-demo",
        fingerprint="0123456789abcdef",
        settings={
            "budget": "10x",
            "seed": 0,
            "sampler": "tpe",
            "trials": 24,
            "space": "default",
            "dtype": "float32",
            GAUGE_SETTING: asdict(PERPLEXITY),
        },
        limits=limits or Limits(DENSE_BYTES // 10, None),
        specs=SPECS,
        skipped=(Skipped("model.norm", "not a matrix"),),
        dense_bytes=DENSE_BYTES,
        dense_bf16_bytes=DENSE_BYTES // 2,
        dense_selection=measurement(0.0, DENSE_BYTES, DENSE_LATENCY),
        dense_report=measurement(0.0, DENSE_BYTES, DENSE_LATENCY, text="report"),
        trials=tuple(trials),
    )


BASELINE = (
    # increase, bytes, ms, method, label: rounding everywhere, then ranks alone
    (0.0004, 4_260_000, 3.1, Quantize(bits=8), "uniform 8 bit"),
    (0.0061, 2_280_000, 2.9, Quantize(bits=4), "uniform 4 bit"),
    (0.096, 1_590_000, 3.2, Quantize(bits=3), "uniform 3 bit"),
    (0.62, 1_280_000, 2.8, Quantize(bits=2), "uniform 2 bit"),
    (0.19, 8_100_000, 5.2, Svd(rank=64), "uniform svd 50%"),
    (2.41, 1_600_000, 2.0, Svd(rank=16), "uniform svd 10x"),
)
SEARCHED = (
    (0.0011, 3_400_000, 3.0, 5, "allocated 4.7x"),
    (0.0036, 2_610_000, 3.0, 4, "allocated 6x"),
    (0.0052, 2_270_000, 3.0, 6, "allocated 7x"),
    (0.0170, 1_970_000, 3.0, 7, "allocated 8x"),
    (0.0640, 1_598_000, 3.1, 8, "allocated 10x"),
    (0.1450, 1_310_000, 2.9, 9, "allocated 12x"),
    (0.4700, 990_000, 2.8, 10, "allocated 16x"),
    (1.1100, 796_000, 2.6, 11, "allocated 20x"),
)


def realistic_study(folder: Path = Path("runs/llama-10x"), *, finished: bool = True) -> StudyRecord:
    """Twenty-four trials: baseline, an allocation sweep, knobs, one infeasible, one failed."""
    trials = [
        trial(
            number, increase, size, time, plan=uniform_plan(method), label=label, phase="baseline"
        )
        for number, (increase, size, time, method, label) in enumerate(BASELINE)
    ]
    for increase, size, time, rank, label in SEARCHED:
        plan = uniform_plan(
            Quantize(bits=3),
            embed_tokens=Quantize(bits=4),
            up_proj=Svd(rank=8 * rank, bits=8),
            k_proj=Keep(),
        )
        trials.append(
            trial(len(trials), increase, size, time, plan=plan, label=label, phase="allocation")
        )
    for step in range(8):
        size = 1_250_000 + 97_000 * step
        increase = 0.07 * (1_600_000 / size) ** 4.2 * (1.02 if step == 3 else 1.25)
        plan = uniform_plan(Quantize(bits=3), o_proj=Svd(rank=16 + 8 * step, bits=8))
        params = {"ratio": round(DENSE_BYTES / size, 2), "floor": 0.1 * step}
        trials.append(trial(len(trials), increase, size, 3.0, plan=plan, params=params))
    trials.append(trial(len(trials), 0.0, 2_900_000, state="infeasible"))
    trials.append(trial(len(trials), 0.0, 1_500_000, state="failed", error="out of memory"))
    study = study_of(*trials, folder=folder)
    return with_reports(study) if finished else study


def with_reports(study: StudyRecord) -> StudyRecord:
    """The study after its finalists were measured on the report text."""
    from dataclasses import replace

    from autocompress.judging.front import finalists

    numbers = {final.number for final in finalists(study)}
    trials = []
    for each in study.trials:
        if each.number in numbers and each.selection is not None:
            increase = math.log(each.selection.figure / SELECTION_PERPLEXITY)
            report = measurement(
                increase, each.bytes, each.selection.latency_ms, each.plan, text="report"
            )
            each = replace(each, report=report)
        trials.append(each)
    return replace(study, trials=tuple(trials))


def with_windows(study: StudyRecord, windows: int = 24) -> StudyRecord:
    """The study with scores window by window on the report text; what is hard is hard for all."""
    from dataclasses import replace

    draw = random.Random(0)
    hardness = [draw.gauss(0, 0.3) for _ in range(windows)]

    def scored(measured: Measurement) -> Measurement:
        increase = math.log(measured.figure / REPORT_PERPLEXITY)
        noise = [draw.gauss(0, 0.2) * increase for _ in range(windows)]
        shift = (
            math.log(measured.figure) - sum(map(sum, zip(hardness, noise, strict=True))) / windows
        )
        nll = tuple(shift + sum(pair) for pair in zip(hardness, noise, strict=True))
        return replace(
            measured, windows=WindowScores((256,) * windows, nll, (measured.divergence,) * windows)
        )

    trials = [
        replace(each, report=scored(each.report)) if each.report else each for each in study.trials
    ]
    return replace(study, dense_report=scored(study.dense_report), trials=tuple(trials))
