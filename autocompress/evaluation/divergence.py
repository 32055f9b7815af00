"""What is kept of the dense model's predictions, and another model's KL divergence from them.

Both classes are ``Rows`` of logarithmic probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

TOP_K = 512  # probabilities kept of a row when not all are; the rest of the mass is one bucket
# Of the mass that is not kept: below, it is what rounding leaves of 1 less the sum of the others.
LEAST_REST = {torch.float32: 1e-6, torch.float64: 1e-7}
CODE_SCALE = 2.0**15  # fp16 codes of probabilities: normal numbers down to 2e-9


class ExactRows:
    """All probabilities as fp16 codes ``[rows, vocabulary]``.

    The stored distribution is the codes divided by their sum, and the divergence is exact for that
    one. Rounding moves it by a relative 2^-12 an element, which changes a divergence by less than
    1e-7 nats.
    """

    NAMES = ("codes", "negative_entropy", "scale")

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self.codes = torch.empty(rows, vocabulary, dtype=torch.float16, device=device)
        self.negative_entropy = torch.empty(rows, device=device)
        self.scale = torch.empty(rows, device=device)
        self.filled = 0

    def tensors(self) -> dict[str, Tensor]:
        """See ``Rows``."""
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The rows that ``tensors`` gave."""
        rows = cls(0, 0, tensors["codes"].device)
        rows.codes, rows.negative_entropy, rows.scale = (tensors[name] for name in cls.NAMES)
        rows.filled = len(rows.codes)
        return rows

    def add(self, log_probabilities: Tensor) -> None:
        """Append rows ``[m, vocabulary]``."""
        codes = log_probabilities.exp().mul_(CODE_SCALE).half()
        span = slice(self.filled, self.filled + len(codes))
        self.codes[span] = codes
        kept = codes.float()
        self.scale[span] = 1 / kept.sum(-1)
        kept *= self.scale[span, None]
        self.negative_entropy[span] = torch.xlogy(kept, kept).sum(-1)
        self.filled = span.stop

    def divergence(self, start: int, log_probabilities: Tensor) -> Tensor:
        """KL from rows ``start ...`` to ``log_probabilities [m, vocabulary]``: ``[m]``."""
        span = slice(start, start + len(log_probabilities))
        cross: Tensor = torch.linalg.vecdot(self.codes[span].float(), log_probabilities)
        return self.negative_entropy[span] - cross * self.scale[span]


def divergence_of_the_top(dense: Tensor, other: Tensor) -> Tensor:
    """KL ``[m]`` over some outcomes of each row, and all the rest as one.

    Merging outcomes never raises a divergence (data processing inequality; Cover and Thomas 2006,
    section 2.9), so this is a lower bound of the exact figure.

    Args:
        dense: ``[m, k]``, logarithmic probabilities of these outcomes.
        other: the same of another distribution, in the same type.
    """
    kept = (dense.exp() * (dense - other)).sum(-1)
    least = LEAST_REST[dense.dtype]
    rest, other_rest = (1 - logs.exp().sum(-1) for logs in (dense, other))
    bucket: Tensor = torch.special.xlogy(
        rest.clamp_min(0), rest.clamp_min(least) / other_rest.clamp_min(least)
    )
    return kept + bucket


class TopRows:
    """The ``TOP_K`` largest probabilities of each row, and the rest of its mass as one bucket.

    See ``divergence_of_the_top``. ``exact`` computes it in fp64, else in fp32.
    """

    NAMES = ("logs", "indices")

    def __init__(self, rows: int, vocabulary: int, device: torch.device, *, exact: bool) -> None:
        count = min(TOP_K, vocabulary)
        narrow = torch.int16 if vocabulary <= 2**15 else torch.int32
        self.indices = torch.empty(rows, count, dtype=narrow, device=device)
        self.logs = torch.empty(rows, count, device=device)
        self.filled = 0
        self.arithmetic = torch.float64 if exact else torch.float32

    def tensors(self) -> dict[str, Tensor]:
        """See ``Rows``."""
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], *, exact: bool) -> Self:
        """The rows that ``tensors`` gave."""
        rows = cls(0, 0, tensors["logs"].device, exact=exact)
        rows.logs, rows.indices = (tensors[name] for name in cls.NAMES)
        rows.filled = len(rows.logs)
        return rows

    def add(self, log_probabilities: Tensor) -> None:
        """Append rows ``[m, vocabulary]``."""
        logs, indices = log_probabilities.topk(self.logs.shape[1], dim=-1, sorted=False)
        span = slice(self.filled, self.filled + len(logs))
        self.logs[span], self.indices[span] = logs, indices.to(self.indices.dtype)
        self.filled = span.stop

    def divergence(self, start: int, log_probabilities: Tensor) -> Tensor:
        """KL from rows ``start ...`` to ``log_probabilities [m, vocabulary]``: ``[m]``."""
        span = slice(start, start + len(log_probabilities))
        other = log_probabilities.gather(-1, self.indices[span].long())
        dense = self.logs[span].to(self.arithmetic)
        return divergence_of_the_top(dense, other.to(self.arithmetic)).float()
