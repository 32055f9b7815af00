"""Print how a table of layer latencies relates to decoding, and meet a latency budget with it.

    python experiments/latency_budget.py
    python experiments/latency_budget.py --model DIR --data FILE --dtype bfloat16 --latency 0.6x

Every plan is decoded in turn with the dense model, on this machine and with this many threads
(OMP_NUM_THREADS); all figures are ratios to it. First come plans of one form for all matrices, and
allocations on predicted loss increase at shares of the table's dense latency. They give the
relation of the table to what is measured end to end, which turns the budget into a limit for the
table. The allocation within that is measured too. When it misses the budget it joins the others,
and the next one keeps farther below. "outside" is the share of a dense token that no plan can save.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from autocompress.calibration.latency_table import LatencyTable
from autocompress.calibration.menu import Menu
from autocompress.driver.proposing.allocation import allocated_plan, bent_choices
from autocompress.driver.proposing.allocator import least_ms
from autocompress.driver.proposing.end_to_end import TimedPlan, relate
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import SLOWEST_TO_LEARN
from autocompress.errors import BudgetUnreachable
from autocompress.evaluation.evaluator import LATENCY_TOKENS
from autocompress.evaluation.latency import DecodeTimer, prompt_of
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.trellis import Trellis
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session, open_session
from autocompress.space.space_file import load_space
from autocompress.studies.relation import Relation
from autocompress.units import Budget

UNIFORM: tuple[Method, ...] = (
    Quantize(8, 0),
    Quantize(4, 64),
    Quantize(3, 64),
    Trellis(3),
    Svd(16),
    Svd(64),
    Svd(96, bits=8),
)
SHARES = (0.9, 0.8, 0.7, 0.6)  # of the table's dense latency
MARGINS = (0.0, 0.5, 1.0, 2.0)  # spreads below the budget, one for each attempt


class Bench:
    """Plans, by the table and end to end."""

    def __init__(self, session: Session, menu: Menu, rounds: int) -> None:
        self.session, self.menu, self.rounds = session, menu, rounds
        self.table = LatencyTable.of(
            session.workbench, menu, session.cache, progress=session.progress
        )
        model = session.loaded.model
        self.timer = DecodeTimer(model, prompt_of(model), LATENCY_TOKENS)
        self.choices = bent_choices(menu, Knobs(measured=0.0), latencies=self.table)
        self.loss_increases: Mapping[tuple[str, Method], float] = {
            (layer.spec.name, option.method): option.loss_increase
            for layer in menu.layers
            for option in layer.options
        }
        self.trials: list[TimedPlan] = []

    def uniform(self, method: Method) -> Plan:
        """One method wherever the menu has it."""
        names = [layer.spec.name for layer in self.menu.layers]
        return Plan.of({name: method for name in names if (name, method) in self.loss_increases})

    def within(self, limit_ms: float) -> Plan:
        """The allocation of least predicted loss increase within a latency by the table."""
        return allocated_plan(self.menu, self.choices, None, limit_ms)

    def measure(self, plan: Plan, label: str) -> TimedPlan:
        """Decode with a plan and with the dense model in turn, and print a line."""
        workbench = self.session.workbench
        dense, ratios = [], []
        for number in range(self.rounds + 1):
            dense_ms = median(self.timer.times())
            with workbench.applied(plan, self.session.builder.build):
                plan_ms = median(self.timer.times())
            if number:  # in the first, layouts of kernels are made
                dense.append(dense_ms)
                ratios.append(plan_ms / dense_ms)
        dense_ms = median(dense)
        trial = TimedPlan(self.table.total(plan), median(ratios) * dense_ms, dense_ms)
        self.trials.append(trial)
        loss_increase = sum(self.loss_increases[name, method] for name, method in plan.items())
        ratio = workbench.inventory.dense_bytes / workbench.inventory.plan_bytes(plan)
        print(
            f"{label:<24}{trial.table_ms / self.table.dense_ms:>8.3f}"
            f"{trial.measured_ms / trial.dense_ms:>12.3f}{loss_increase:>10.4f}{ratio:>8.2f}x"
            f"  {plan.summary()}",
            flush=True,
        )
        return trial

    def relation(self) -> Relation:
        """What the trials say, as in a search, with the median of the dense model's latencies."""
        dense = median(trial.dense_ms for trial in self.trials)
        useful = [t for t in self.trials if t.measured_ms <= SLOWEST_TO_LEARN * t.dense_ms]
        return relate(useful, self.table.dense_ms, dense)


def measure_spread(bench: Bench) -> None:
    """Measure plans of one form, and allocations at shares of the table's dense latency."""
    for method in UNIFORM:
        plan = bench.uniform(method)
        if len(plan):
            bench.measure(plan, str(method))
    for share in SHARES:
        try:
            plan = bench.within(share * bench.table.dense_ms)
        except BudgetUnreachable:
            continue
        bench.measure(plan, f"allocated, table {share:g}")


def meet(bench: Bench, share: float) -> None:
    """Allocate within a latency end to end until a plan is measured to be."""
    for margin in MARGINS:
        relation = bench.relation()
        limit = share * relation.dense_ms
        fastest = least_ms(bench.choices) * (1 + 1e-4)
        if relation.predict(fastest) - relation.spread_ms > limit:
            print(f"\nno plan is predicted to be as fast: {relation.predict(fastest):.4g} ms")
            return
        try:
            plan = bench.within(max(relation.table_limit(limit, margin), fastest))
        except BudgetUnreachable as error:
            print(f"\n{error}")
            return
        trial = bench.measure(plan, f"allocated for {share:g}x")
        if trial.measured_ms <= share * trial.dense_ms:
            print(f"\nmet: {trial.measured_ms / trial.dense_ms:.3f}x end to end")
            return
    print(f"\nnot met in {len(MARGINS)} attempts")


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument("--data", help="text file; the bundled texts when left out")
    parser.add_argument("--dtype", help="float32 or bfloat16; as stored when left out")
    parser.add_argument("--space", default="default", help="search space")
    parser.add_argument("--latency", default="0.7x", help="share of the dense model's latency")
    parser.add_argument("--rounds", type=int, default=12, help="counted rounds of each plan")
    parser.add_argument("--runs-dir", type=Path, help="whose cache to use; temporary if left out")
    options = parser.parse_args()
    share = Budget.parse(None, options.latency).latency_share
    if share is None:
        parser.error("--latency wants a share of the dense model's, such as 0.7x")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.runs_dir or Path(scratch)
        session = open_session(
            SessionRequest(
                model=options.model,
                data=options.data,
                runs_dir=folder,
                compute_dtype=options.dtype,
            )
        )
        print("Fitting the options of every matrix ...", flush=True)
        bench = Bench(
            session, session.menu(load_space(options.space), fit_all=True), options.rounds
        )
        print(f"{bench.table.place}; ratios to the dense model\n")
        print(f"{'plan':<24}{'table':>8}{'end to end':>12}{'loss_increase':>10}{'bytes':>9}  forms")
        measure_spread(bench)
        relation = bench.relation()
        outside = max(relation.outside_ms, 0.0) / relation.dense_ms
        fastest = relation.predict(least_ms(bench.choices)) / relation.dense_ms
        print(f"\n{relation}")
        print(f"outside of the matrices: {outside:.2f} of a token; fastest plan: {fastest:.2f}x\n")
        meet(bench, share)


if __name__ == "__main__":
    main()
