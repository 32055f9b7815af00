"""Store a matrix as a tensor train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    MatrixProblem,
    Method,
    smallest_share,
    torch_dtype,
    whole_number,
    whole_numbers,
)
from autocompress.methods.core_fitting import Part, store_fitted
from autocompress.methods.folding import check_modes, check_ranks, folded_label
from autocompress.numerics.shapes import balanced_modes, matrix_train_limits
from autocompress.numerics.tensor_train import TrainForm
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class TensorTrain(Method):
    """One core per pair of an out mode and an in mode.

    Attributes:
        ranks: rank of each of the ``d - 1`` joints.
        out_modes: ``d`` modes of the rows.
        in_modes: ``d`` modes of the columns.
        bits: 8 or 4 to round the cores, 0 to keep them in the type of the matrix.
    """

    ranks: tuple[int, ...]
    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]
    bits: int = 0
    name: ClassVar[str] = "tensor_train"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for setting in ("out_modes", "in_modes", "ranks"):
            whole_numbers(self.name, setting, getattr(self, setting), empty=setting == "ranks")
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        if len(self.out_modes) != len(self.in_modes) or len(self.ranks) != len(self.out_modes) - 1:
            order = len(self.out_modes)
            raise MethodError(
                "method tensor_train: a train has as many out modes as in modes, "
                "and a rank between each two",
                got=f"{order} out modes, {len(self.in_modes)} in modes, {len(self.ranks)} ranks",
                wanted=f"{order}, {order} and {order - 1}",
            )

    @classmethod
    def uniform(
        cls, shape: tuple[int, int], *, order: int, rank: int, bits: int = 0
    ) -> TensorTrain:
        """The train of ``order`` balanced modes with one rank at every joint.

        The rank is lower where the modes allow less.
        """
        out_modes, in_modes = balanced_modes(shape[0], order), balanced_modes(shape[1], order)
        limits = matrix_train_limits(out_modes, in_modes)
        return cls(tuple(min(rank, limit) for limit in limits), out_modes, in_modes, bits)

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, ranks must not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or ranks that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        limits = matrix_train_limits(self.out_modes, self.in_modes)
        check_ranks(self, spec, self.ranks, limits)

    def rank_share(self, spec: LayerSpec) -> float:  # noqa: ARG002 - the modes say it all
        """Smallest share of the largest rank of any joint."""
        return smallest_share(self.ranks, matrix_train_limits(self.out_modes, self.in_modes))

    def skeleton(self, spec: LayerSpec) -> TensorTrainMatrix:
        """A layer of cores without content."""
        return TensorTrainMatrix(
            *spec.shape,
            ranks=self.ranks,
            out_modes=self.out_modes,
            in_modes=self.in_modes,
            bits=self.bits,
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Decompose the whitened matrix, improve the cores, and round them if asked to."""
        form = TrainForm(self.ranks, self.out_modes, self.in_modes)
        ranks = (1, *self.ranks, 1)
        parts = [
            Part(f"cores.{k}", (1, 3, 0, 2), (out, ranks[k + 1], ranks[k], into))
            for k, (out, into) in enumerate(zip(self.out_modes, self.in_modes, strict=True))
        ]
        return store_fitted(problem, form, parts, self.bits)

    def __str__(self) -> str:
        return folded_label("tt", self.out_modes, self.ranks, self.bits)
