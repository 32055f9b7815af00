"""The project's own search, as the baselines are compared with it: what it came to at what cost."""

from __future__ import annotations

import argparse
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from search_curves import Point

import autocompress
from autocompress.api.session import TextSettings
from autocompress.progress import Advance, Silent
from autocompress.search.dominance import selection_loss
from autocompress.search.study import StudyRecord

PASSES = 4  # forward passes that one forth, and forth and back block by block, counts for


def add_arguments(parser: argparse.ArgumentParser, tokens: int) -> None:
    """The model, the texts, and where things are kept."""
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument(
        "--data", help="text file or hub/name:config:split; the bundled texts when left out"
    )
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


def texts_of(args: argparse.Namespace, selection_tokens: int | None = None) -> TextSettings:
    """The texts that the arguments name; with another number of tokens to select on if given."""
    return TextSettings(data=args.data, selection_tokens=selection_tokens or args.tokens)


class Pricings(Silent):
    """Counts the tokens that a search says it prices options on.

    Those that it then finds in the cache count as well: a search with an empty one passes them.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Count the tokens of the tasks that price."""
        if description.startswith("Pricing"):
            self.tokens += PASSES * (total or 0)
        return super().task(description, total)


@dataclass(frozen=True)
class OwnSearch:
    """The project's own search.

    Attributes:
        study: what it found.
        priced_tokens: that it passed through compressed models to price options, besides its
            trials, in forward passes.
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
        dense = math.log(self.study.dense_selection.perplexity)
        return [
            Point(trial.bytes, selection_loss(trial) - dense, trial.selection.kl)
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
    texts, pricings = texts_of(args), Pricings()
    study = autocompress.search(
        args.model,
        budget,
        space=args.space,
        trials=trials,
        seed=seed,
        texts=texts,
        study="-".join(map(str, parts)),
        runs_dir=args.runs_dir,
        refit=False,  # plans are compared as they are fitted
        track=False,
        progress=pricings,
    )
    return OwnSearch(study, pricings.tokens)
