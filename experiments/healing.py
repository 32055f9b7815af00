"""Print what healing regains of what plans lose, and which plans it changes the order of.

    python experiments/healing.py
    python experiments/healing.py --cases 10x 20x --steps 100
    python experiments/healing.py --table        # of what was measured before

Plans of the search are those of `python experiments/compare_with_baseline.py`, in the same
--runs-dir; a search that is not there is run first. Each plan is healed on the calibration text and
on what the bundled model was trained on (or on --data: with `calibration` on that text alone, which
is too short for so many steps), watched on the selection text and reported on the report text. A
case that is finished is kept, one that is cut off goes on, so several processes may share them out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from demo_corpus import build_corpus

import autocompress
from autocompress.atomic_write import written_whole
from autocompress.driver.goal import read_goal
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.errors import StudyError
from autocompress.evaluation.corpus import bundled_text
from autocompress.evaluation.evaluator import Evaluator
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.heal_plan import heal_plan, healing_text
from autocompress.judging.front import baseline_rival, pick
from autocompress.methods.base import Method
from autocompress.methods.folding import Modes
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.records import LayerSpec
from autocompress.requests.groups import SessionRequest
from autocompress.requests.healing import HealSettings
from autocompress.requests.verbs import CompressRequest
from autocompress.session.session import Session, open_session
from autocompress.store import content_key
from autocompress.studies.study import StudyRecord
from autocompress.surgery.compressed import Compressed

CALIBRATION = "calibration"
MOST_CHARACTERS = 5_000_000  # to heal on
ALIGNED = 0.25
PRESET_RATIO = 2.5  # of the matrices, the embedding in 8 bits
GENTLE = 0.55  # of the parameters of attention that are left by the preset
TRAINS = Path(__file__).with_name("tensor_trains.yaml")
Plans = Callable[[Session, Path], Plan]


def searched(budget: str, session: Session, runs_dir: Path) -> Plan:
    """Best plan of the search at a budget."""
    return pick(study_of(budget, session, runs_dir), "best").plan


def uniform(budget: str, session: Session, runs_dir: Path) -> Plan:
    """Best uniform plan in the same bytes."""
    study = study_of(budget, session, runs_dir)
    rival = baseline_rival(study, pick(study, "best"))
    if rival is None:
        raise SystemExit(f"no uniform plan fits {budget}")
    return rival.plan


def study_of(budget: str, session: Session, runs_dir: Path) -> StudyRecord:
    name = f"compare-{Path(session.loaded.source).name.removeprefix('autocompress-')}-{budget}"
    try:
        return autocompress.front(name, runs_dir=runs_dir).unhealed
    except StudyError:
        return autocompress.search(
            budget=budget, study=name, runs_dir=runs_dir, refit=False, track=False
        )


def baseline(beginning: str, session: Session, _runs_dir: Path) -> Plan:
    """A uniform plan at half the parameters, by the beginning of its name."""
    plans = baseline_plans(session.workbench.inventory.layers)
    return next(plan for name, plan in plans if name.startswith(beginning))


def two_bits(session: Session, _runs_dir: Path) -> Plan:
    """Every matrix in trellis codes of 2 bits."""
    return Plan.of({spec.name: Trellis(2) for spec in session.workbench.inventory.layers})


def tensor_trains(gentle: bool, session: Session, _runs_dir: Path) -> Plan:
    """Tensor trains at ``PRESET_RATIO``, alike everywhere or gentle on attention."""
    inventory = session.workbench.inventory
    blocks: dict[str, list[LayerSpec]] = {}
    for spec in inventory.layers:
        blocks.setdefault(spec.role.part, []).append(spec)
    methods: dict[str, Method] = {spec.name: Quantize(8, 0) for spec in blocks["embedding"]}
    fixed = inventory.dense_bytes / PRESET_RATIO - sum(
        methods[spec.name].cost(spec) for spec in blocks["embedding"]
    )
    spared = blocks["attention"] if gentle else []
    methods |= {spec.name: train(spec, GENTLE) for spec in spared}
    room = fixed - sum(methods[spec.name].cost(spec) for spec in spared)
    trains = [spec for spec in inventory.layers if spec.name not in methods]
    share = room / sum(Keep().cost(spec) for spec in trains)
    methods |= {spec.name: train(spec, share) for spec in trains}
    return Plan.of(methods)


def allocated_trains(session: Session, runs_dir: Path) -> Plan:
    """Tensor trains in the bytes of those that are alike, each matrix's ranks as allocated."""
    size = session.workbench.inventory.plan_bytes(tensor_trains(False, session, runs_dir))
    return read_goal(CompressRequest(budget=f"{size}B", space=str(TRAINS))).choose(session).plan


def train(spec: LayerSpec, share: float) -> TensorTrain:
    modes = Modes.of(spec, 2, "skewed")
    first = modes.rows[0] * modes.columns[0]
    last = modes.rows[1] * modes.columns[1]
    rank = min(int(share * spec.parameters / (first + last)), first, last)
    return TensorTrain(ranks=(rank // 8 * 8,), out_modes=modes.rows, in_modes=modes.columns)


CASES: dict[str, tuple[str, Plans, dict[str, Any]]] = {
    "10x": ("search at 10x", partial(searched, "10x"), {}),
    "10x-aligned": (
        f"search at 10x, {ALIGNED:.0%} of the steps block by block",
        partial(searched, "10x"),
        {"align": ALIGNED},
    ),
    "10x-uniform": ("best uniform plan at 10x", partial(uniform, "10x"), {}),
    "16x": ("search at 16x", partial(searched, "16x"), {}),
    "16x-uniform": ("best uniform plan at 16x", partial(uniform, "16x"), {}),
    "2bit": ("uniform 2 bit trellis", two_bits, {}),
    "20x": ("search at 20x", partial(searched, "20x"), {}),
    "svd": ("uniform SVD, half the parameters", partial(baseline, "uniform SVD"), {}),
    "tt": ("uniform tensor train, half", partial(baseline, "uniform tensor"), {}),
    "tt-uniform": ("tensor trains alike, 2.5x", partial(tensor_trains, False), {}),
    "tt-gentle": (
        "tensor trains, gentle on attention, 2.5x",
        partial(tensor_trains, True),
        {},
    ),
    "tt-allocated": ("tensor trains, ranks allocated, 2.5x", allocated_trains, {}),
}


def heal_case(
    name: str,
    session: Session,
    settings: HealSettings,
    data: str | None,
    runs_dir: Path,
    file: Path,
) -> None:
    """Heal a plan and keep the figures."""
    plan = CASES[name][1](session, runs_dir)
    text, ids = healing_text(session, data, settings)
    identity = {"case": name, "plan": plan.hash, "settings": asdict(settings), "text": text}
    kept = Checkpoint(file.with_suffix(".part"), identity)
    evaluator = Evaluator(session.workbench, session.builder.build)
    report = session.scored_text("report")
    dense = report.teacher.score.loss
    before = evaluator.score(plan, report)
    came, healed = heal_plan(session, Compressed(plan), ids, settings, kept)
    after = evaluator.score(came, report)
    facts = {
        "bytes": session.workbench.inventory.plan_bytes(plan),
        "ratio": session.workbench.inventory.dense_bytes
        / session.workbench.inventory.plan_bytes(plan),
        "before": before.loss - dense,
        "after": after.loss - dense,
        "kl_before": before.divergence,
        "kl_after": after.divergence,
        "perplexity_after": after.figure,
        "steps": healed.checks[-1].step,
        "tokens": healed.tokens,
        "plan": plan.summary(),
        "checks": [asdict(check) for check in healed.checks],
    }
    file.write_text(json.dumps(facts, indent=1))
    kept.remove()
    print_row(name, facts)


def long_text(folder: Path) -> str:
    """Path of a file with the calibration text and much of the bundled model's training text."""
    path = folder / "healing-text.txt"
    if not path.exists():
        text = "\n\n".join([bundled_text("calibration"), *build_corpus().training])
        with written_whole(path) as temporary:
            temporary.write_text(text[:MOST_CHARACTERS], encoding="utf-8")
    return str(path)


def print_row(name: str, facts: dict[str, Any]) -> None:
    print(
        f"{CASES[name][0]:<52}{facts['ratio']:>7.2f}x{facts['before']:>9.4f}{facts['after']:>9.4f}"
        f"{facts['after'] / facts['before']:>7.2f}{facts['kl_before']:>9.4f}"
        f"{facts['kl_after']:>9.4f}{facts['perplexity_after']:>9.2f}",
        flush=True,
    )


def main() -> None:
    """Heal the cases that are not there yet, then print all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=HealSettings.tokens, help="of a step")
    parser.add_argument("--rate", type=float, default=HealSettings.rate)
    parser.add_argument("--data", help="text to heal on, or calibration")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--table", action="store_true", help="heal nothing, print what is there")
    arguments = parser.parse_args()
    session = open_session(SessionRequest(runs_dir=arguments.runs_dir))
    folder = arguments.runs_dir / "healing-benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name in arguments.cases:
        settings = HealSettings(
            steps=arguments.steps, tokens=arguments.tokens, rate=arguments.rate, **CASES[name][2]
        )
        key = content_key(name, asdict(settings), arguments.data, session.loaded.fingerprint)[:8]
        files[name] = folder / f"{name}-{key}.json"
        if not files[name].exists() and not arguments.table:
            data = arguments.data or long_text(folder)
            own = None if data == CALIBRATION else data
            heal_case(name, session, settings, own, arguments.runs_dir, files[name])
    print(f"\n{arguments.steps} steps of {arguments.tokens} tokens, report text")
    print(
        f"{'':<52}{'ratio':>8}{'before':>9}{'healed':>9}{'share':>7}"
        f"{'KL':>9}{'healed':>9}{'perpl.':>9}"
    )
    for name, file in files.items():
        if file.exists():
            print_row(name, json.loads(file.read_text()))
    print("before, healed: increase of log-perplexity; share: of the increase that is left.")


if __name__ == "__main__":
    main()
