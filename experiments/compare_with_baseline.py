"""Print what a search gains over the plans that a person would write baseline, at several budgets.

    python experiments/compare_with_baseline.py
    python experiments/compare_with_baseline.py --budget 8x 12x --model DIR --data FILE

For each budget, on the report text: the dense model, the best uniform baseline that fits in the
bytes, the additive allocation (what predicted loss increase alone would choose, without any
search), and the best plan of the search; then the baseline one and that of the search with their
matrices refitted, as a search does at its end. Both best plans are chosen on the selection text.
The best is then exported, and every tensor in its safetensors files compared with the bytes that
the closed form says. A study that is there already goes on where it stopped, so a second call only
prints.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from safetensors.torch import load_file

import autocompress
from autocompress.deploy.exported import Exported
from autocompress.driver.study_session import open_study_session
from autocompress.errors import BudgetUnreachable
from autocompress.evaluation.evaluator import Evaluator
from autocompress.judging.front import baseline_rival, pick
from autocompress.methods.base import stored_tensors
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
from autocompress.requests.efforts import EFFORTS
from autocompress.session.session import Session
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.surgery.inventory import stored_tensors_of
from autocompress.surgery.placement import prefix_of

TARGET = 0.75


def allocated(study: StudyRecord) -> TrialRecord | None:
    """The additive allocation at the budget, by what was predicted before anything was measured."""
    trials = (t for t in study.complete if t.label.endswith("on predictions"))
    return next(trials, None)


def on_report_text(session: Session, trial: TrialRecord) -> Measurement:
    """The trial's measurement on the report text, taken now if the search had no need of it."""
    if trial.report is not None:
        return trial.report
    evaluator = Evaluator(session.workbench, session.builder.build)
    return evaluator.measure(trial.plan, session.scored_text("report"), latency=False)


def print_comparison(study: StudyRecord, session: Session, best: TrialRecord) -> None:
    dense = study.dense_report.figure
    print(
        f"{'':<22}{'bytes':>10}{'ratio':>8}{'perplexity':>12}{'increase':>9}{'share':>8}{'KL':>9}"
    )
    print(f"{'dense':<22}{study.dense_bytes:>10}{1:>7.2f}x{dense:>12.4f}")
    plans = study.unhealed
    found = pick(plans, "best")
    rows = [
        ("baseline", baseline_rival(plans, found)),
        ("additive allocation", allocated(study)),
        ("plan of the search", found),
        ("baseline, anew", baseline_rival(study, best)),
        ("best of the search", best),
    ]
    baseline = math.nan
    for name, trial in rows:
        if trial is None:
            print(f"{name:<22}none fits")
            continue
        measured = on_report_text(session, trial)
        increase = math.log(measured.figure / dense)
        baseline = increase if name == "baseline" else baseline
        columns = (
            f"{trial.bytes:>10}{study.dense_bytes / trial.bytes:>7.2f}x{measured.figure:>12.4f}"
        )
        shares = f"{increase:>9.4f}{increase / baseline:>8.2f}{measured.divergence:>9.4f}"
        print(f"{name:<22}{columns}{shares}  {trial.label}")
    print(f"share: of the uniform baseline's increase (wanted of the best: at most {TARGET}).")


def closed_form(session: Session, plan: Plan) -> dict[str, int]:
    """Bytes of every tensor that the model stores under a plan, by name, from shapes alone."""
    sizes = {
        name: tensor.nbytes for name, tensor in stored_tensors_of(session.loaded.model).items()
    }
    for spec in session.workbench.inventory.layers:
        method = plan.get(spec.name, Keep())
        if method != Keep():
            for path in (spec.name, *spec.tied):
                sizes.pop(f"{path}.weight", None)
            sizes.pop(f"{spec.name}.bias", None)
            sizes |= {
                f"{prefix_of(spec)}{part}": size for part, size in stored_tensors(method, spec)
            }
    return sizes


def print_bytes(study: StudyRecord, session: Session, exported: Exported) -> None:
    wanted = closed_form(session, exported.plan)
    files = sorted(exported.report.folder.glob("*.safetensors"))
    there = {name: tensor.nbytes for file in files for name, tensor in load_file(file).items()}
    equal = sum(wanted.get(name) == size for name, size in there.items())
    print(f"\ntensors: {len(there)} exported, {len(wanted)} in closed form, {equal} of equal bytes")
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            print(f"  DIFFERS {name}: {there.get(name)} on disk, {wanted.get(name)} in closed form")
    total = session.workbench.inventory.plan_bytes(exported.plan)
    on_disk = sum(file.stat().st_size for file in files)
    print(f"closed form: {total} bytes, all tensors: {sum(there.values())}, files: {on_disk}")
    print(f"dense: {study.dense_bytes} bytes, {study.dense_bytes / on_disk:.3f} times the files")
    print(f"perplexity after loading in a fresh process: {exported.verification.figure:.6f}")


def compare(budget: str, args: argparse.Namespace) -> None:
    name = f"compare-{Path(args.model).name if args.model else 'demo'}-{budget}"
    print(f"\n== {budget} ({name}) ==", flush=True)
    study = autocompress.search(
        args.model,
        budget,
        data=args.data,
        trials=args.trials,
        study=name,
        runs_dir=args.runs_dir,
        track=False,
    )
    session = open_study_session(study, args.runs_dir)
    best = pick(study, "best")
    print_comparison(study, session, best)
    with tempfile.TemporaryDirectory() as scratch:
        exported = autocompress.export(study, out=Path(scratch) / "best")
        print_bytes(study, session, exported)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--budget", nargs="+", default=["10x"], help="one or several, such as 8x 10x 25%%"
    )
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument(
        "--data", help="text file or hub/name:config:split; the bundled texts when left out"
    )
    parser.add_argument("--trials", type=int, default=EFFORTS["thorough"].trials)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = parser.parse_args()
    for budget in args.budget:
        try:
            compare(budget, args)
        except BudgetUnreachable as error:
            print(error)


if __name__ == "__main__":
    main()
