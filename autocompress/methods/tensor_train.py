"""Store a matrix as a tensor train."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.methods.base import MatrixProblem, one_of, torch_dtype, whole_number
from autocompress.methods.core_fitting import Part, store_fitted, store_given
from autocompress.methods.folding import Folded
from autocompress.methods.listing import Baseline, Listed
from autocompress.numerics.tensors.shapes import (
    balanced_modes,
    feasible_train_ranks,
    matrix_train_limits,
    padded_modes,
    paired_modes,
)
from autocompress.numerics.tensors.tensor_train import TrainForm, random_train
from autocompress.records import LayerSpec

Init = Literal["svd", "random"]


@dataclass(frozen=True)
class TensorTrain(Folded):
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
    label: ClassVar[str] = "tt"
    layer: ClassVar[Callable[..., CompressedMatrix]] = TensorTrainMatrix

    def __post_init__(self) -> None:
        self.check_settings()
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
    def rank_count(cls, out_order: int, in_order: int) -> int:
        """One between each two cores."""
        return max(out_order, in_order) - 1

    @classmethod
    def rank_limits(cls, out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
        """See ``matrix_train_limits``; the shorter side is padded."""
        order = max(len(out_modes), len(in_modes))
        return matrix_train_limits(padded_modes(out_modes, order), padded_modes(in_modes, order))

    @classmethod
    def check_listed(cls, listed: Listed, given: Collection[str]) -> None:
        """See ``Listable``."""
        super().check_listed(listed, given)
        if any(len(modes.rows) != len(modes.columns) for modes in listed["modes"]):
            raise ValueError("`modes` with as many rows as columns")

    @classmethod
    def baselines(cls, share: float) -> Iterator[Baseline]:
        """Two balanced modes a side, and as many parameters as the share allows."""

        def cut(spec: LayerSpec) -> TensorTrain:
            outs, ins = (balanced_modes(side, 2) for side in spec.shape)
            first, last = outs[0] * ins[0], outs[1] * ins[1]
            rank = min(int(share * spec.parameters / (first + last)), first, last)
            return cls((max(rank, 1),), outs, ins)

        yield Baseline(f"tensor train, {share:.0%} of the parameters", cut)

    def feasible(self) -> TensorTrain:
        """The same with ranks that its modes and its other ranks allow."""
        modes = paired_modes(self.out_modes, self.in_modes)
        return replace(self, ranks=feasible_train_ranks(self.ranks, modes))

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
        if self.is_drawn:
            size = float(problem.weight32.norm()) / math.sqrt(problem.weight.numel())
            cores = random_train(form, size, self._generator(problem.spec))
            device = problem.weight.device
            return store_given(
                [core.to(device) for core in cores], parts, self.bits, torch_dtype(problem.spec)
            )
        return store_fitted(problem, form, parts, self.bits)

    @property
    def is_drawn(self) -> bool:
        """See ``Method``."""
        return self.init == "random"

    def seeded(self, seed: int | None) -> TensorTrain:
        """See ``Method``."""
        return replace(self, seed=seed) if self.is_drawn and seed is not None else self

    def _generator(self, spec: LayerSpec) -> torch.Generator:
        """What draws the cores of one matrix, the same on every machine."""
        digest = hashlib.sha256(f"{self.seed} {spec.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def __str__(self) -> str:
        label = super().__str__()
        return label if self.init == "svd" else f"{label} random {self.seed}"
