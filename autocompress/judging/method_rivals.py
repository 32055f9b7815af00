"""Methods against each other on single matrices: which options another method beats, how clearly.

Options are compared by stored bytes and predicted loss increase. The measured swaps correct a
matrix's loss increases by their size, which tells no methods apart.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from autocompress.calibration.menu import Menu, State
from autocompress.errors import StudyError
from autocompress.methods.base import Method
from autocompress.studies.stored_menu import read_menu
from autocompress.studies.study import StudyRecord


@dataclass(frozen=True)
class Offer:
    """One option of a matrix, as far as methods are compared.

    Attributes:
        label: of its method.
        bytes: stored.
        loss_increase: increase of the loss, nats per token.
        fitted: whether the loss increase is of a fit; else it is predicted.
    """

    label: str
    bytes: int
    loss_increase: float
    fitted: bool = True


@dataclass(frozen=True)
class Rival:
    """A method that beats options of another on the same matrix.

    Attributes:
        label: the rival.
        options: how many options it beats more clearly than any other method does.
        factor: median of their loss increase over the rival's, at no more bytes.
    """

    label: str
    options: int
    factor: float


def method_label(method: Method) -> str:
    """The method with its bits where they tell: ``3 bit trellis``, ``svd int8``, ``tucker``."""
    if method.form != method.name or method.bits_per_element is None:
        return method.form.replace("_", " ")
    return f"{method.name.replace('_', ' ')} int{method.bits_per_element:g}"


def offers_of(menu: Menu) -> dict[str, tuple[Offer, ...]]:
    """The offers of every matrix of a menu, by layer name, with their predicted loss increases."""
    return {
        layer.spec.name: tuple(
            Offer(
                method_label(option.method),
                option.file_bytes,
                option.loss_increase,
                option.state is State.FITTED,
            )
            for option in layer.options
        )
        for layer in menu.layers
    }


def stored_offers(study: StudyRecord) -> dict[str, tuple[Offer, ...]] | None:
    """The offers of the menu in a study's run folder; ``None`` where there is none to be read."""
    try:
        return offers_of(read_menu(study).menu)
    except StudyError:
        return None


@dataclass(frozen=True)
class Tally:
    """Counts over the matrices of a menu, by label; factors by label and rival."""

    options: Counter[str]
    fitted: Counter[str]
    matrices: Counter[str]
    unbeaten: Counter[str]
    factors: dict[str, dict[str, list[float]]]

    @classmethod
    def of(cls, menus: Iterable[Sequence[Offer]]) -> Tally:
        """Count over the offers of some matrices."""
        factors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        tally = cls(Counter(), Counter(), Counter(), Counter(), factors)
        for offers in menus:
            tally._count(offers)
        return tally

    def _count(self, offers: Sequence[Offer]) -> None:
        """Go through a matrix's offers by rising bytes, with each label's least increase so far."""
        least: dict[str, float] = {}
        unbeaten: set[str] = set()
        by_bytes = sorted(offers, key=lambda offer: offer.bytes)
        for _, same in groupby(by_bytes, key=lambda offer: offer.bytes):
            group = list(same)
            for offer in group:
                least[offer.label] = min(offer.loss_increase, least.get(offer.label, math.inf))
            for offer in group:
                others = (
                    (loss_increase, label)
                    for label, loss_increase in least.items()
                    if label != offer.label
                )
                loss_increase, rival = min(others, default=(math.inf, ""))
                if loss_increase < offer.loss_increase:
                    factor = offer.loss_increase / loss_increase if loss_increase > 0 else math.inf
                    self.factors[offer.label][rival].append(factor)
                else:
                    unbeaten.add(offer.label)
        self.options.update(offer.label for offer in offers)
        self.fitted.update(offer.label for offer in offers if offer.fitted)
        self.matrices.update({offer.label for offer in offers})
        self.unbeaten.update(unbeaten)

    def rivals(self, label: str) -> tuple[Rival, ...]:
        """What beats a method, the most frequent first."""
        found = [
            Rival(rival, len(factors), statistics.median(factors))
            for rival, factors in self.factors[label].items()
        ]
        return tuple(sorted(found, key=lambda rival: (-rival.options, rival.label)))
