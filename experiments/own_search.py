"""The project's own search, as the baselines are compared with it: what it came to at what cost."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from search_curves import Point

import autocompress
from autocompress.calibration.builder import LayerBuilder
from autocompress.driver import rounds
from autocompress.driver.prices import divergence_of
from autocompress.evaluation.evaluator import ScoredText
from autocompress.judging.dominance import selection_loss
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Advance, Progress
from autocompress.requests.groups import SessionRequest
from autocompress.studies.study import StudyRecord

PASSES = 4  # forward passes that one forth, and forth and back block by block, counts for


def add_arguments(parser: argparse.ArgumentParser, tokens: int) -> None:
    """The model, the texts, and where things are kept."""
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument(
        "--data", help="text file or hub/name:config:split; the bundled texts when left out"
    )
    for part in ("calibration", "selection", "report"):
        parser.add_argument(f"--{part}-data", help=f"the {part} text alone, in place of --data")
    parser.add_argument("--space", default="default", help="search space (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=tokens, help="tokens of the selection text (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the searches (%(default)s)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where studies and caches are kept"
    )
    parser.add_argument(
        "--study",
        default="baselines",
        help="first part of the names of the project's studies; one that is there goes on, "
        "so name another to search anew (%(default)s)",
    )


def texts_of(args: argparse.Namespace) -> dict[str, Any]:
    """The texts that the arguments name, as settings of a request."""
    names = ("data", "calibration_data", "selection_data", "report_data")
    return {name: getattr(args, name) for name in names} | {"selection_tokens": args.tokens}


def request_of(args: argparse.Namespace, **other: Any) -> SessionRequest:
    """The model and the texts that the arguments name."""
    named = {"model": args.model, "runs_dir": args.runs_dir} | texts_of(args)
    return SessionRequest(**named | other)


class Pricings:
    """Counts the tokens that pricing passes: to price options, and to check where prices lead.

    Prices that are then found in the cache count as well: with an empty one they are passed.

    Args:
        shown: told all that this is told.
    """

    def __init__(self, shown: Progress = SILENT) -> None:
        self.tokens, self.shown = 0, shown

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Count the tokens of the tasks that price."""
        if description.startswith("Pricing"):
            self.tokens += PASSES * (total or 0)
        return self.shown.task(description, total)

    def note(self, message: str) -> None:
        """Pass a line on."""
        self.shown.note(message)

    @contextmanager
    def counting_checks(self) -> Iterator[None]:
        """Count the tokens of the check text too, whose tasks tell windows and not tokens."""

        def counted(plan: Plan, builder: LayerBuilder, text: ScoredText, *rest: Any) -> float:
            self.tokens += len(text.windows.ids)
            return divergence_of(plan, builder, text, *rest)

        with patch.object(rounds, "divergence_of", counted):
            yield


@dataclass(frozen=True)
class OwnSearch:
    """The project's own search.

    Attributes:
        study: what it found.
        priced_tokens: that it passed through compressed models to price options and to check where
            prices lead, besides its trials, in forward passes.
    """

    study: StudyRecord
    priced_tokens: int

    @property
    def tokens(self) -> int:
        """All that it scored to find what it found; the final measurements are not among them."""
        scored = (trial.selection or trial.partial for trial in self.study.trials)
        return self.priced_tokens + sum(each.tokens for each in scored if each)

    @property
    def points(self) -> list[Point]:
        """What each trial that was scored came to; one that was stopped early came to nothing.

        On the selection text, also where there is a measurement on the report text.
        """
        dense = math.log(self.study.dense_selection.figure)
        return [
            Point(trial.bytes, selection_loss(trial) - dense, trial.selection.divergence)
            if trial.state == "complete" and trial.selection
            else Point(trial.bytes, math.inf, math.inf)
            for trial in self.study.trials
            if trial.state not in ("failed", "infeasible")
        ]


def own_search(
    args: argparse.Namespace, budget: str | None, trials: int, seed: int | None = None
) -> OwnSearch:
    """Run the project's own search on the same model and tokens, through its public function."""
    model = Path(args.model).name if args.model else "demo"
    seed = args.seed if seed is None else seed
    parts = args.study, model, args.tokens, budget or "front", trials, f"s{seed}"
    pricings = Pricings()
    with pricings.counting_checks():
        study = autocompress.search(
            args.model,
            budget,
            space=args.space,
            trials=trials,
            seed=seed,
            **texts_of(args),
            study="-".join(map(str, parts)),
            runs_dir=args.runs_dir,
            refit=False,  # plans are compared as they are fitted
            track=False,
            progress=pricings,
        )
    return OwnSearch(study, pricings.tokens)
