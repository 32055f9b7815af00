"""Compare the project's search at a budget with an evolution of the EvoPress type, in tokens.

    python experiments/evolution.py
    python experiments/evolution.py --budget 10x 16x --most-tokens 4000000 --out curves

The evolution follows Sieberling, Kuznedelev, Kurtic and Alistarh 2024 (arXiv 2410.14649, and their
code for bit widths): one parent; offspring by level switches; fitness is the KL divergence from the
dense model; each generation selects in stages, on few tokens and then on more, drawn afresh for
each stage and common to all candidates; the parent joins the last stage. Their script for a model
of 224 matrices makes 128 offspring, of which 16, 4 and 1 survive 2048, 16384 and 131072 tokens, for
150 generations. Here it is 32, of which 8, 2 and 1 survive 256, 1024 and 4096 tokens, for a model
of 29 matrices, which makes many more generations with the same tokens.

Levels are the numbers of a matrix's undominated options, as many and as large as these happen to
be, not steps of equal bytes. So a switch raises one to three matrices (few more often than many) by
one level, then lowers random matrices by one level until the bytes are within the budget; as in the
paper's code, an offspring with more than 10 changes, or that gave up much more bytes than it took,
is drawn again. The first parent is uniform, every matrix at the same share of its bytes, or, as a
help that the project's allocator gives, the additive allocation on predicted loss increases.

Both searches are held against each other by the KL divergence on the report text, which neither has
seen; those measurements are not counted. Counted for the project are the tokens that all trials
were scored on and those of its passes to price options inside compressed models; for the
evolution, the tokens of all candidates in all stages.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from level_evolution import Evolution
from menu_levels import LevelMenu, Levels, Meter, limit_of, open_menu
from own_search import OwnSearch, add_arguments, own_search
from search_curves import add_keeping, kept

from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.judging.front import pick
from autocompress.session.session import Session
from autocompress.store import tensor_key
from autocompress.units import format_bytes

STARTS = ("uniform", "allocated")
TARGET = 10  # times the project's tokens that the evolution shall need


class FreshTokens:
    """Divergence of candidates on windows drawn afresh from a pool, and how many tokens that took.

    Args:
        session: the model.
        menu: what the levels mean.
        pool: the tokens ``[n]`` to draw windows from.
        rng: draws them.
    """

    def __init__(
        self, session: Session, menu: LevelMenu, pool: torch.Tensor, rng: random.Random
    ) -> None:
        self.session, self.menu, self.rng = session, menu, rng
        self.windows = pool[: len(pool) // session.context * session.context].split(session.context)
        self.evaluator = Evaluator(session.workbench, session.builder.build)
        self.tokens = 0

    def __call__(self, candidates: Sequence[Levels], tokens: int) -> list[float]:
        """Score all candidates on the same windows; see ``Fitness``."""
        context = self.session.context
        count = min(max(1, tokens // context), len(self.windows))
        windows = Windows(torch.cat(self.rng.sample(self.windows, count)), context)
        text = ScoredText("selection", windows, Teacher.of(self.session.loaded.model, windows))
        self.tokens += len(candidates) * windows.tokens
        return [self.evaluator.score(self.menu.plan(each), text).divergence for each in candidates]


def evolve(
    evolution: Evolution,
    fresh: FreshTokens,
    held_out: Meter,
    parent: Levels,
    most_tokens: int,
    check_every: int,
) -> list[dict[str, Any]]:
    """Evolve until so many tokens are scored; what the parent is worth on held-out text on the way.

    Returns:
        Mappings with ``tokens``, ``generation``, ``bytes``, ``increase`` and ``kl``.
    """
    rows: list[dict[str, Any]] = []
    checked: Levels | None = None
    generation = 0
    while True:
        last = fresh.tokens >= most_tokens
        if (generation % check_every == 0 or last) and parent != checked:
            point = held_out(parent)
            checked = parent
            rows.append({"tokens": fresh.tokens, "generation": generation, **vars(point)})
            print(f"  {fresh.tokens:>9} tokens: KL {point.kl:.4f}", flush=True)
        if last:
            return rows
        parent = evolution.next_parent(parent)
        generation += 1


def kl_at(rows: Sequence[dict[str, Any]], tokens: float) -> float:
    """Divergence of the last parent that was found with so many tokens."""
    return next((row["kl"] for row in reversed(rows) if row["tokens"] <= tokens), math.nan)


def print_comparison(own: OwnSearch, curves: dict[str, list[dict[str, Any]]], most: int) -> None:
    """Print what both searches find with how many tokens.

    Args:
        own: the project's search.
        curves: what the evolution found, by start.
        most: tokens that it was given.
    """
    best, tokens = pick(own.study, "best"), own.tokens
    if best.report is None:
        print("the project's search has no plan within the budget")
        return
    wanted = best.report.divergence
    print(
        f"the project's search: KL {wanted:.4f}, {format_bytes(best.bytes)}, {tokens} tokens, "
        f"{own.priced_tokens} of them besides its {len(own.study.trials)} trials"
    )
    times = [t for t in (0.25, 0.5, 1, 2, 5, 10, 20) if t * tokens <= most]
    print("evolution's KL with as many tokens times".ljust(42), "".join(f"{t:>9g}" for t in times))
    for start, rows in curves.items():
        cells = "".join(f"{kl_at(rows, t * tokens):>9.4f}" for t in times)
        reached = next((row["tokens"] for row in rows if row["kl"] <= wanted), None)
        outcome = f"never within {most / tokens:.1f} times the project's tokens"
        if reached is not None:
            outcome = f"as good with {reached / tokens:.2f} times the project's tokens"
        print(f"{'from the ' + start + ' plan':<42}", f"{cells}   {outcome}")
    print(f"wanted: {TARGET} times the project's tokens or more, or never")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, tokens=2_048)
    parser.add_argument("--budget", nargs="+", default=["10x"], help="such as 10x 16x")
    parser.add_argument("--trials", type=int, default=40, help="of the project's search (40)")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--offspring", type=int, default=32, help="in a generation (%(default)s)")
    parser.add_argument(
        "--stages",
        nargs="+",
        type=stage,
        default=[(256, 8), (1024, 2), (4096, 1)],
        metavar="TOKENS:SURVIVORS",
        help="stages of the selection (256:8 1024:2 4096:1)",
    )
    parser.add_argument(
        "--pool", type=int, default=16_384, help="tokens that it draws from (%(default)s)"
    )
    parser.add_argument(
        "--most-tokens", type=int, default=2_100_000, help="to evolve with (%(default)s)"
    )
    parser.add_argument(
        "--check-every", type=int, default=10, help="generations between looks (%(default)s)"
    )
    add_keeping(parser)
    parser.add_argument("--evolution-only", action="store_true", help="without the project's")
    args = parser.parse_args()
    session, menu = open_menu(args, args.pool)
    for budget in args.budget:
        compare(budget, args, session, menu)


def stage(text: str) -> tuple[int, int]:
    """Read ``256:8``."""
    tokens, _, survivors = text.partition(":")
    return int(tokens), int(survivors)


def compare(budget: str, args: argparse.Namespace, session: Session, menu: LevelMenu) -> None:
    """Run both searches at a budget, and print how they compare."""
    print(f"\n== {budget} ==", flush=True)
    limit = limit_of(budget, menu) or menu.inventory.dense_bytes
    curves = {}
    for start in args.starts:
        settings = {
            "model": session.loaded.fingerprint,
            "menu": menu.key,
            "pool": tensor_key(session.selection_ids),
            "report": tensor_key(session.report_ids),
            "limit": limit,
            "start": start,
            **{name: getattr(args, name) for name in ("offspring", "most_tokens", "check_every")},
            "stages": [list(each) for each in args.stages],
            "seed": args.seed,
        }
        print(f"evolution from the {start} plan ...", flush=True)
        path = args.out and args.out / f"evolution-{start}-{budget}-s{args.seed}.json"
        run = partial(evolution_from, start, limit, args, session, menu)
        curves[start] = kept(path, settings, run, args.ignoring)
    if not args.evolution_only:
        print(f"the project's search: {args.trials} trials ...", flush=True)
        print_comparison(own_search(args, budget, args.trials), curves, args.most_tokens)


def evolution_from(
    start: str, limit: int, args: argparse.Namespace, session: Session, menu: LevelMenu
) -> list[dict[str, Any]]:
    """Evolve at a limit from one of the starts."""
    rng = random.Random(args.seed)
    fresh = FreshTokens(session, menu, session.selection_ids, rng)
    evolution = Evolution(menu, limit, fresh, args.offspring, args.stages, rng)
    held_out = Meter(session, menu, session.scored_text("report"))
    parent = menu.uniform(limit) if start == "uniform" else menu.allocated(limit)
    return evolve(evolution, fresh, held_out, parent, args.most_tokens, args.check_every)


if __name__ == "__main__":
    main()
