"""Store a matrix as a tensor train."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    MatrixProblem,
    Method,
    one_of,
    smallest_share,
    torch_dtype,
    whole_number,
    whole_numbers,
)
from autocompress.methods.core_fitting import Part, store_fitted, store_given
from autocompress.methods.folding import check_modes, check_ranks, fitting_modes, folded_label
from autocompress.numerics.shapes import (
    balanced_modes,
    feasible_train_ranks,
    matrix_train_limits,
    padded_modes,
    paired_modes,
)
from autocompress.numerics.tensor_train import TrainForm, random_train
from autocompress.records import LayerSpec

Init = Literal["svd", "random"]


@dataclass(frozen=True)
class TensorTrain(Method):
    """One core per pair of an out mode and an in mode.

    Of unequally many modes the shorter side is padded with modes of 1 at its end.

    Attributes:
        ranks: rank of each of the ``d - 1`` joints.
        out_modes: ``d`` modes of the rows.
        in_modes: ``d`` modes of the columns.
        bits: 8 or 4 to round the cores, 0 to keep them in the type of the matrix.
        init: ``svd`` fits the cores to the matrix; ``random`` draws them, to be trained.
        seed: of random cores; each matrix draws its own.
    """

    ranks: tuple[int, ...]
    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]
    bits: int = 0
    init: Init = "svd"
    seed: int = 0
    name: ClassVar[str] = "tensor_train"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for setting in ("out_modes", "in_modes", "ranks"):
            whole_numbers(self.name, setting, getattr(self, setting), empty=setting == "ranks")
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)
        one_of(self.name, "init", self.init, get_args(Init))
        whole_number(self.name, "seed", self.seed, least=0)
        if self.seed and self.init != "random":
            raise MethodError(
                "method tensor_train, seed", got=self.seed, wanted="no seed without init: random"
            )
        order = max(len(self.out_modes), len(self.in_modes))
        if len(self.ranks) != order - 1:
            raise MethodError(
                "method tensor_train, ranks",
                got=f"{len(self.ranks)} ranks for {len(self.out_modes)} out modes and "
                f"{len(self.in_modes)} in modes",
                wanted=f"a rank between each two of {order} cores, {order - 1}",
            )
        for side in ("out_modes", "in_modes"):
            object.__setattr__(self, side, padded_modes(getattr(self, side), order))

    @classmethod
    def uniform(
        cls, shape: tuple[int, int], *, order: int, rank: int, bits: int = 0
    ) -> TensorTrain:
        """The train of ``order`` balanced modes with one rank at every joint.

        The rank is lower where the modes allow less.
        """
        out_modes, in_modes = balanced_modes(shape[0], order), balanced_modes(shape[1], order)
        return cls((rank,) * (order - 1), out_modes, in_modes, bits).feasible()

    def feasible(self) -> TensorTrain:
        """The same with ranks that its modes and its other ranks allow."""
        modes = paired_modes(self.out_modes, self.in_modes)
        return replace(self, ranks=feasible_train_ranks(self.ranks, modes))

    def fitting(self, spec: LayerSpec) -> TensorTrain:
        """The same with the nearest modes that fit a matrix, and ranks that they allow."""
        out_modes, in_modes = fitting_modes(spec, self.out_modes, self.in_modes)
        return replace(self, out_modes=out_modes, in_modes=in_modes).feasible()

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, ranks must not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or ranks that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        limits = matrix_train_limits(self.out_modes, self.in_modes)
        check_ranks(self, spec, self.ranks, limits, self.feasible().ranks)

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

    def to_dict(self) -> dict[str, Any]:
        """See ``Method.to_dict``; what random cores need is named for them alone."""
        settings = super().to_dict()
        if self.init == "svd":
            del settings["init"], settings["seed"]
        return settings

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Decompose the whitened matrix and improve the cores, or draw them; round if asked to.

        Random cores make a matrix whose elements are as large as the trained one's, in the mean.
        """
        form = TrainForm(self.ranks, self.out_modes, self.in_modes)
        ranks = (1, *self.ranks, 1)
        parts = [
            Part(f"cores.{k}", (1, 3, 0, 2), (out, ranks[k + 1], ranks[k], into))
            for k, (out, into) in enumerate(zip(self.out_modes, self.in_modes, strict=True))
        ]
        if self.init == "random":
            size = float(problem.weight32.norm()) / math.sqrt(problem.weight.numel())
            cores = random_train(form, size, self._generator(problem.spec))
            device = problem.weight.device
            return store_given(
                [core.to(device) for core in cores], parts, self.bits, torch_dtype(problem.spec)
            )
        return store_fitted(problem, form, parts, self.bits)

    def _generator(self, spec: LayerSpec) -> torch.Generator:
        """What draws the cores of one matrix, the same on every machine."""
        digest = hashlib.sha256(f"{self.seed} {spec.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def __str__(self) -> str:
        label = folded_label("tt", self.out_modes, self.ranks, self.bits)
        return label if self.init == "svd" else f"{label} random {self.seed}"
