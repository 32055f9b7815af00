"""How a compressed model is healed."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Literal

from autocompress.errors import ConfigurationError
from autocompress.methods.penalties import Penalty
from autocompress.requests.base import (
    Allowed,
    Request,
    any_of,
    at_least,
    flag_of,
    option,
    request,
)

Trained = Literal["all", "factors"]
_SHARE = Allowed(lambda value: 0 <= value <= 1, "a share from 0 to 1")
_CHANGES_NOTHING = "healing: {} is of no use"


@request
class HealSettings(Request):
    """What determines a healed model, beside the model, its plan and the texts."""

    steps: int = option(
        default=300,
        help="Steps of the optimiser; with 0 the matrices of a trial are only refitted.",
        check=at_least(0),
    )
    tokens: int = option(
        default=4096,
        help="Tokens of a step, rounded to whole windows, at least one.",
        check=at_least(1),
    )
    tokens_at_once: int | None = option(
        default=None,
        help="Tokens of a pass, whose gradients are added up to a step: fewer take less memory.",
        typed=int,
        check=at_least(1),
    )
    rate: float = option(
        default=0.01,
        help="Highest learning rate, as a share of the root mean square of what is trained.",
        check=Allowed(lambda value: 0 < value <= 1, "more than 0 and at most 1, such as 0.01"),
    )
    train: Trained = option(
        default="all",
        help="Weights that are trained: all, or factors, which are all but codes and take a "
        "quarter of the memory.",
        check=any_of("all", "factors"),
    )
    refit: bool = option(
        default=True,
        help="Refit each matrix of a trial first, on what the compressed matrices before it "
        "give, unless it was trained or refitted before.",
    )
    shrink: float | None = option(
        default=None,
        help="Share of a matrix's squared norm that cutting its ranks afterwards may lose, "
        "such as 0.003.",
        typed=float,
        check=Allowed(lambda value: 0 < value < 1, "a share such as 0.003"),
    )
    align: float = option(
        default=0.0,
        help="Share of the steps that train each block by itself first, to return what the dense "
        "model's block does.",
        check=_SHARE,
    )
    lm: float = option(
        default=0.0,
        help="Share of the language-model loss in the objective, beside the divergence from the "
        "dense model.",
        check=_SHARE,
    )
    patience: int | None = option(
        default=None,
        help="Number of checks on the selection text without progress that end the healing; "
        "none when left out.",
        typed=int,
        check=at_least(1),
    )
    seed: int = option(default=0, help="Seed of the order of the text.")
    penalties: tuple[Penalty, ...] = field(
        default=(), metadata={"help": "What is asked of the ranks of factorised layers meanwhile."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps:
            return
        if not self.refit and self.shrink is None:
            raise ConfigurationError(
                _CHANGES_NOTHING.format("--steps"),
                got=0,
                wanted="at least 1, where matrices are not refitted",
            )
        for each in fields(HealSettings):
            value = getattr(self, each.name)
            useful = each.name in ("steps", "tokens_at_once", "refit", "shrink")
            if not useful and value != each.default:
                raise ConfigurationError(
                    _CHANGES_NOTHING.format(flag_of(each.name)),
                    got=value,
                    wanted="it left out: with --steps 0 nothing is trained",
                )
