"""Print what a search gains over the plans that a person would write by hand, at several budgets.

    python experiments/compare_with_hand_written.py
    python experiments/compare_with_hand_written.py --budget 8x 12x --model DIR --data FILE

For each budget, on the report text: the dense model, the best hand-written plan that fits in the
bytes, the additive allocation (what predicted damage alone would choose, without any search), and
the best plan of the search; then the hand-written one and that of the search with their matrices
fitted anew, as a search does at its end. Both best plans are chosen on the selection text. The best
is then exported, and every tensor in its safetensors files compared with the bytes that the closed
form says. A study that is there already goes on where it stopped, so a second call only prints.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from safetensors.torch import load_file

import autocompress
from autocompress.deploy.exported import Exported
from autocompress.driver.study_choice import SearchSettings
from autocompress.errors import BudgetUnreachable
from autocompress.evaluation.evaluator import Evaluator
from autocompress.judging.front import hand_written_rival, pick
from autocompress.methods.base import stored_tensors
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
from autocompress.session.efforts import EFFORTS
from autocompress.session.session import Session, open_session
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
    evaluator = Evaluator(session.workbench, session.build)
    return evaluator.measure(trial.plan, session.scored_text("report"), latency=False)


def print_comparison(study: StudyRecord, session: Session, best: TrialRecord) -> None:
    dense = study.dense_report.perplexity
    print(f"{'':<22}{'bytes':>10}{'ratio':>8}{'perplexity':>12}{'rise':>9}{'share':>8}{'KL':>9}")
    print(f"{'dense':<22}{study.dense_bytes:>10}{1:>7.2f}x{dense:>12.4f}")
    plans = study.unhealed
    found = pick(plans, "best")
    rows = [
        ("hand-written", hand_written_rival(plans, found)),
        ("additive allocation", allocated(study)),
        ("plan of the search", found),
        ("hand-written, anew", hand_written_rival(study, best)),
        ("best of the search", best),
    ]
    hand_written = math.nan
    for name, trial in rows:
        if trial is None:
            print(f"{name:<22}none fits")
            continue
        measured = on_report_text(session, trial)
        rise = math.log(measured.perplexity / dense)
        hand_written = rise if name == "hand-written" else hand_written
        columns = (
            f"{trial.bytes:>10}{study.dense_bytes / trial.bytes:>7.2f}x{measured.perplexity:>12.4f}"
        )
        shares = f"{rise:>9.4f}{rise / hand_written:>8.2f}{measured.kl:>9.4f}"
        print(f"{name:<22}{columns}{shares}  {trial.label}")
    print(f"share: of the hand-written plan's rise (wanted of the best: at most {TARGET}).")


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
    print(f"perplexity after loading in a fresh process: {exported.verification.perplexity:.6f}")


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
    settings = SearchSettings.of_study(study)
    session = open_session(settings.model, settings.texts, args.runs_dir)
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
