"""How a compressed model is healed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from autocompress.errors import ConfigurationError
from autocompress.methods.penalties import Penalty

Trained = Literal["all", "factors"]


@dataclass(frozen=True)
class HealSettings:
    """What determines a healed model, beside the model, its plan and the texts.

    Attributes:
        steps: of the optimiser; with 0 nothing is trained, matrices are only fitted anew.
        tokens: of a step; rounded to whole windows, at least one.
        tokens_at_once: of a pass, whose gradients are added up to a step; as many as keep the
            logits small when left out.
        rate: the highest learning rate, as a share of the root mean square of what is trained.
        refit: first fit each matrix anew to what the compressed model really gives it; not for
            numbers that have been trained before.
        shrink: afterwards cut ranks where at most this share of a matrix's squared norm is lost; no
            ranks when left out.
        align: share of the steps in which each block is trained by itself to return what the dense
            model's block does, before the whole model is trained on its outputs.
        lm: share of the plain language-model loss in the objective; the rest is divergence from the
            dense model.
        trained: ``all`` stored numbers, or ``factors``: all but codes, which are frozen. Then the
            factors of a corrector are what adapters are elsewhere (LoRA, Hu et al. 2021, arXiv
            2106.09685), with nothing to merge afterwards, and the memory is a quarter.
        patience: checks on the selection text without progress before it ends early; no limit when
            left out.
        seed: of the order of the windows.
        penalties: what is asked of the ranks of factorised layers beside.
    """

    steps: int = 300
    tokens: int = 4096
    tokens_at_once: int | None = None
    rate: float = 0.01
    align: float = 0.0
    lm: float = 0.0
    trained: Trained = "all"
    patience: int | None = None
    seed: int = 0
    penalties: tuple[Penalty, ...] = ()
    refit: bool = True
    shrink: float | None = None

    def __post_init__(self) -> None:
        _check("steps", self.steps, self.steps >= 0, "at least 0")
        _check("tokens", self.tokens, self.tokens >= 1, "at least 1")
        at_once, patience = self.tokens_at_once, self.patience
        _check("tokens-at-once", at_once, at_once is None or at_once >= 1, "at least 1")
        _check("patience", patience, patience is None or patience >= 1, "at least 1")
        _check("rate", self.rate, 0 < self.rate <= 1, "more than 0 and at most 1, such as 0.01")
        for name in ("align", "lm"):
            value = getattr(self, name)
            _check(name, value, 0 <= value <= 1, "a share from 0 to 1")
        shrunk = self.shrink
        _check("shrink", shrunk, shrunk is None or 0 < shrunk < 1, "a share such as 0.003")
        if not self.steps:
            self._check_untrained()
        _check("train", self.trained, self.trained in get_args(Trained), "all or factors")

    def _check_untrained(self) -> None:
        """Refuse what changes nothing where nothing is trained."""
        useful = self.refit or self.shrink is not None
        _check("steps", 0, useful, "at least 1, where matrices are not fitted anew")
        for each in fields(self):
            if each.name not in ("steps", "tokens_at_once", "refit", "shrink"):
                value = getattr(self, each.name)
                _check(each.name, value, value == each.default, "left out: nothing is trained")


def _check(name: str, value: object, right: bool, wanted: str) -> None:
    if not right:
        raise ConfigurationError(f"healing, {name}", got=value, wanted=wanted)
