"""The dozen knobs above the exact allocation, searched instead of hundreds of layer choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from autocompress.calibration.menu import LayerMenu, Option
from autocompress.calibration.priced_menu import PricedMenu

# Times the loss increase: only a budget that nothing else meets still takes it.
BELOW_THE_FLOOR = 100.0


class Suggests(Protocol):
    """The part of an Optuna trial that knobs need."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Propose a number."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Propose a whole number."""


@dataclass(frozen=True)
class Knobs:
    """How the predicted loss increases are bent before the allocation adds them up.

    The second-order prediction ranks small loss increase well and underestimates heavy loss
    increase, and loss increases are not additive; the knobs are the corrections that measured
    trials may ask for.

    Attributes:
        measured: power of the ratios of prices to predictions: 0 takes the predictions as they are,
            1 the prices.
        exponent: loss increases are raised to it; above 1 spreads the loss increase evenly, below 1
            concentrates it.
        attention: multiplies loss increases in attention; ``mlp`` and ``embedding`` likewise.
        mlp: see ``attention``.
        embedding: see ``attention``.
        slope: the last block's loss increases weigh ``4 ** slope`` times the middle's, the first
            block's the inverse.
        factorised: multiplies loss increases of the forms that cut ranks; the most lets none of
            them in.
        two_bit: multiplies loss increases of codes of 2 bits and fewer.
        least_bits: codes of fewer bits are let in only where nothing else fits the budget.
        distrust: divides loss increases of forms fitted in shrunk or diagonal Gram matrices.
            Predicted by the full ones they are never the better, whatever they are on other text.
        price: what the latency of the whole dense model is worth, as a share of the loss increase
            of the plan that the allocation starts from; it spends bytes and loss increase on faster
            forms.
    """

    measured: float = 1.0
    exponent: float = 1.0
    attention: float = 1.0
    mlp: float = 1.0
    embedding: float = 1.0
    slope: float = 0.0
    factorised: float = 1.0
    two_bit: float = 1.0
    least_bits: int = 1
    distrust: float = 1.0
    price: float = 0.0

    @classmethod
    def suggest(cls, trial: Suggests, *, priced: bool = False) -> Knobs:
        """Ask a sampler for all knobs, that of the price only if latencies are known."""
        return cls(
            measured=trial.suggest_float("measured", 0.0, 1.5),
            exponent=trial.suggest_float("exponent", 0.8, 1.4),
            attention=trial.suggest_float("attention", 0.5, 2.0, log=True),
            mlp=trial.suggest_float("mlp", 0.5, 2.0, log=True),
            embedding=trial.suggest_float("embedding", 0.5, 2.0, log=True),
            slope=trial.suggest_float("slope", -0.5, 0.5),
            factorised=trial.suggest_float("factorised", 1.0, 16.0, log=True),
            two_bit=trial.suggest_float("two_bit", 0.5, 2.0, log=True),
            least_bits=trial.suggest_int("least_bits", 1, 3),
            distrust=trial.suggest_float("distrust", 1.0, 4.0, log=True),
            price=trial.suggest_float("price", 0.0, 2.0) if priced else 0.0,
        )

    def scorer(self, blocks: int, priced: PricedMenu | None = None) -> Scorer:
        """Make the score of an option, for a model of so many transformer blocks."""
        return Scorer(self, blocks, priced or PricedMenu())


@dataclass(frozen=True)
class Scorer:
    """Score of an option under knobs: the allocation minimises its sum.

    Attributes:
        knobs: the corrections.
        blocks: number of transformer blocks.
        priced: what options cost inside a compressed model.
    """

    knobs: Knobs
    blocks: int
    priced: PricedMenu = field(default_factory=PricedMenu, hash=False)

    def __call__(self, layer: LayerMenu, option: Option) -> float:
        """Bend the predicted loss increase of an option for a layer."""
        if option.loss_increase <= 0:
            return 0.0
        ratio = self.priced.ratio(layer.spec.name, option.loss_increase)
        loss_increase = option.loss_increase * ratio**self.knobs.measured
        return self._weight(layer) * self._form(option) * float(loss_increase**self.knobs.exponent)

    def _weight(self, layer: LayerMenu) -> float:
        weight: float = getattr(self.knobs, layer.spec.role.part, 1.0)
        if layer.spec.depth is not None and self.blocks > 1:
            position = 2 * layer.spec.depth / (self.blocks - 1) - 1  # -1 first block, 1 last
            weight *= 4.0 ** (self.knobs.slope * position)
        return weight

    def _form(self, option: Option) -> float:
        weight = self.knobs.factorised if option.method.factorised else 1.0
        bits = 16 if option.method.factorised else option.method.bits_per_element or 16
        weight *= self.knobs.two_bit if bits <= 2 else 1.0
        weight *= BELOW_THE_FLOOR if bits < self.knobs.least_bits else 1.0
        cautious = option.method.gram_kind != "full"
        return weight / self.knobs.distrust if cautious else weight
