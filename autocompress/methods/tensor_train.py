"""Store a matrix as a tensor train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.packed import table_shape
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
from autocompress.methods.folding import check_modes, folded_label, store_core
from autocompress.numerics.kronecker import scalings
from autocompress.numerics.shapes import balanced_modes, matrix_train_limits
from autocompress.numerics.tensor_train import decompose_matrix_train, train_to_matrix
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
        if any(rank > limit for rank, limit in zip(self.ranks, limits, strict=True)):
            raise MethodError(
                f"layer {spec}, {self}: ranks", got=self.ranks, wanted=f"at most {limits}"
            )

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
        """Decompose the matrix, plain and scaled, and keep the decomposition of least damage.

        The scales are Kronecker products near the metric.
        """
        cores = self.cores(problem)
        stored: dict[str, Tensor] = {}
        for k, core in enumerate(cores):
            core = core.permute(1, 3, 0, 2)
            table = core.reshape(table_shape(core.shape, self.bits)[:2])
            stored |= store_core(f"cores.{k}", table, self.bits, torch_dtype(problem.spec))
        return stored

    def cores(self, problem: MatrixProblem) -> list[Tensor]:
        """Best cores ``[r_{k-1}, o_k, i_k, r_k]`` before rounding; computed once for all bits."""
        key = ("tensor_train", self.ranks, self.out_modes, self.in_modes)
        if key not in problem.memo:
            fits = [
                decompose_matrix_train(
                    problem.weight32,
                    self.ranks,
                    self.out_modes,
                    self.in_modes,
                    out_scales=out,
                    in_scales=into,
                )
                for out, into in scalings(problem.metric, self.out_modes, self.in_modes)
            ]
            problem.memo[key] = min(fits, key=lambda cores: problem.damage(train_to_matrix(cores)))
        found: list[Tensor] = problem.memo[key]
        return found

    def __str__(self) -> str:
        return folded_label("tt", self.out_modes, self.ranks, self.bits)
