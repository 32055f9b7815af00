"""What the experiments on fits share: one method for every linear layer, and what that costs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autocompress.calibration.builder import LayerBuilder
from autocompress.evaluation.evaluator import Evaluator
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.numerics.metric import Metric
from autocompress.numerics.rounding import largest_group
from autocompress.records import Kind, LayerSpec
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session, open_session

MethodOf = Callable[[LayerSpec], Method]


@dataclass(frozen=True)
class Cost:
    """What a plan costs.

    Attributes:
        bits: stored bits per weight of the layers it changes.
        loss_increase: predicted increase of the loss, summed over the layers.
        increase: of the log-perplexity on the report text, nats per token.
    """

    bits: float
    loss_increase: float
    increase: float


class UniformPlans:
    """Measures one method, or one rule, on all linear layers of a model; the rest stays dense.

    Args:
        session: the model with its texts.
        metrics: to fit in; those of the session when left out.
        judges: to predict the loss increase in; those of the session when left out.
    """

    def __init__(
        self,
        session: Session,
        metrics: dict[str, Metric] | None = None,
        judges: dict[str, Metric] | None = None,
    ) -> None:
        self.session, self.judges = session, judges or session.metrics
        self.builder = LayerBuilder(session.workbench, metrics or session.metrics, session.cache)
        layers = session.workbench.inventory.layers
        self.specs = [spec for spec in layers if spec.kind is not Kind.EMBEDDING]
        self.text = session.scored_text("report")

    def cost(self, method_of: MethodOf) -> Cost:
        """Fit, and measure on the report text."""
        plan = Plan.of({spec.name: method_of(spec) for spec in self.specs})
        evaluator = Evaluator(self.session.workbench, self.builder.build)
        perplexity = evaluator.measure(plan, self.text, latency=False).figure
        loss_increase = 0.0
        for spec in self.specs:
            dense = self.session.workbench.problem(spec.name).weight32
            change = self.builder.build(spec.name, plan[spec.name]).to_dense() - dense
            loss_increase += self.judges[spec.name].loss_increase(change)
        weights = sum(spec.parameters for spec in self.specs)
        stored = 8 * sum(plan[spec.name].cost(spec) for spec in self.specs)
        increase = math.log(perplexity / self.text.teacher.score.figure)
        return Cost(stored / weights, loss_increase, increase)


def group_of(spec: LayerSpec, most: int) -> int:
    """The largest group size up to ``most`` that divides the rows of a matrix."""
    return largest_group(spec.in_features, most) if most else 0


def rank_at(spec: LayerSpec, share: float) -> int:
    """The rank at which two factors hold a share of a matrix's parameters."""
    return max(1, round(share * spec.parameters / sum(spec.shape)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the texts, and where caches are kept."""
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument(
        "--data", help="text file or hub/name:config:split; the bundled texts when left out"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where caches are kept")


def session_of(args: argparse.Namespace, calibration_tokens: int = 16_384) -> Session:
    """The model and texts that the arguments name."""
    return open_session(
        SessionRequest(
            model=args.model,
            data=args.data,
            calibration_tokens=calibration_tokens,
            runs_dir=args.runs_dir,
        )
    )
