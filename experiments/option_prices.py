"""Compare the prices of options inside a compressed plan with measured swaps and with predictions.

    python experiments/option_prices.py
    python experiments/option_prices.py --model DIR --data FILE --budget 4x --swaps 40

For each budget the additive allocation on predictions is the plan. Random undominated options of
random matrices, of those that are fitted, are swapped into it, one at a time, and the divergence is
measured; printed are the rank correlation (Spearman) and the linear one (Pearson) with what is
predicted around the dense model and with the prices of one pass forth and back, and the seconds
that both take. Then the plan that the prices lead to is compared with the first one on the
selection text.
"""

from __future__ import annotations

import argparse
import random
import time

from own_search import add_arguments, request_of
from scipy.stats import pearsonr, spearmanr

from autocompress.calibration.menu import Menu
from autocompress.driver.prices import price_options
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.rounds import price_menu
from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.session.session import Session, open_session
from autocompress.space.space_file import load_space
from autocompress.units import Budget

SIZES = 5  # around the budget that plans are made at, so that there are fitted options to compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, tokens=16_384)
    parser.add_argument("--budget", nargs="+", default=["6x", "10x", "16x"], help="budgets to try")
    parser.add_argument("--swaps", type=int, default=87, help="options to measure (%(default)s)")
    parser.add_argument(
        "--fit-all", action="store_true", help="fit every option, not only what plans take"
    )
    args = parser.parse_args()
    session = open_session(request_of(args))
    menu = session.menu(load_space(args.space), fit_all=args.fit_all)
    evaluator = Evaluator(session.workbench, session.builder.build, None, session.begin)
    texts = session.pricing_texts
    text = texts.slopes
    selection = session.scored_text("selection")
    for budget in args.budget:
        limits = Budget.parse(budget).limits(session.workbench.inventory.dense_bytes, 1.0)
        inventory = session.workbench.inventory
        proposer = Proposer(menu, inventory, limits, fit=session.fit_taken)
        plan = proposer.settled(PREDICTED, *proposer.targets[:SIZES])
        menu = proposer.menu
        apart = evaluator.score(plan, text).divergence
        print(f"{budget}: the additive allocation diverges by {apart:.4f}")
        compare(session, menu, evaluator, plan, text, args.swaps, args.seed)
        started = time.perf_counter()
        best = price_menu(proposer, session.builder, texts)
        seconds = time.perf_counter() - started
        before, after = (evaluator.score(each, selection).divergence for each in (plan, best))
        print(
            f"  on the selection text: {before:.4f}, allocated by prices {after:.4f} "
            f"({after / before:.2f}), in {seconds:.1f} s more"
        )


def compare(
    session: Session,
    menu: Menu,
    evaluator: Evaluator,
    plan: Plan,
    text: ScoredText,
    count: int,
    seed: int,
) -> None:
    """Print how predictions and prices agree with measured swaps."""
    started = time.perf_counter()
    priced = price_options(plan, menu, session.builder, text)
    pricing = time.perf_counter() - started
    predicted = {(m.spec.name, o.method): o.loss_increase for m in menu.layers for o in m.options}
    pairs = [
        (layer.spec.name, option.method)
        for layer in menu.layers
        for option in layer.undominated
        if option.method != plan[layer.spec.name]
    ]
    total = len(pairs)
    pairs = random.Random(seed).sample(pairs, min(count, total))
    started = time.perf_counter()
    swaps = [
        evaluator.score(Plan.of({**plan, name: method}), text).divergence - priced.divergence
        for name, method in pairs
    ]
    swapping = time.perf_counter() - started
    costs = {name: dict(prices) for name, prices in priced.menu().by_layer.items()}

    def price(name: str, method: Method) -> float:
        return 0.0 if method == Keep() else costs[name][predicted[name, method]]

    columns = {
        "predicted": [predicted[n, m] - predicted[n, plan[n]] for n, m in pairs],
        "priced": [price(n, m) - price(n, plan[n]) for n, m in pairs],
    }
    print(f"  {priced.trust:.0%} of the slopes is no chance")
    print(f"  {total} options priced in {pricing:.1f} s, {len(pairs)} swaps in {swapping:.1f} s")
    for name, values in columns.items():
        rank, linear = spearmanr(values, swaps).statistic, pearsonr(values, swaps).statistic
        print(f"  {name:10s} rank correlation {rank:.4f}, linear {linear:.4f}")


if __name__ == "__main__":
    main()
