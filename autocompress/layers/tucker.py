"""A matrix as a Tucker decomposition, used without being multiplied out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from string import ascii_letters

import torch
from torch import Tensor

from autocompress.layers.contraction import contract
from autocompress.layers.folded import FoldedMatrix
from autocompress.layers.packed import Core, Cores
from autocompress.numerics.tensors.tucker import TuckerForm


class TuckerMatrix(FoldedMatrix):
    """``W`` folded into out modes and in modes, ``W = core x_1 U_1 ... x_n U_n``.

    Attributes:
        core: factor ``[product of the out ranks, product of the in ranks]``.
        out_factors: factors ``[o_k, r_k]``.
        in_factors: factors ``[r_k, i_k]``.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        ranks: Sequence[int],
        out_modes: Sequence[int],
        in_modes: Sequence[int],
        bits: int,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            out_features,
            in_features,
            out_modes=out_modes,
            in_modes=in_modes,
            bias=bias,
            dtype=dtype,
        )
        self.out_ranks, self.in_ranks = (
            tuple(ranks[: len(out_modes)]),
            tuple(ranks[len(out_modes) :]),
        )
        out_shapes = zip(self.out_modes, self.out_ranks, strict=True)
        in_shapes = zip(self.in_ranks, self.in_modes, strict=True)
        self.core = Core(
            (math.prod(self.out_ranks), math.prod(self.in_ranks)), bits=bits, dtype=dtype
        )
        self.out_factors = Cores(out_shapes, bits=bits, dtype=dtype)
        self.in_factors = Cores(in_shapes, bits=bits, dtype=dtype)

    @property
    def form(self) -> TuckerForm:
        """See ``FoldedMatrix``."""
        return TuckerForm(self.out_ranks + self.in_ranks, self.out_modes, self.in_modes)

    def form_cores(self) -> list[Tensor]:
        """See ``FoldedMatrix``."""
        out_factors, in_factors, core = self._read(torch.float32)
        core = core.reshape(*self.out_ranks, *self.in_ranks)
        return [core, *out_factors, *(factor.T for factor in in_factors)]

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, ``[..., out]`` in the dtype of ``x [..., in]``, from the factors.

        In the order that costs least for so many inputs: ``layers.contraction``.
        """
        out_factors, in_factors, core = self._read(x.dtype)
        core = core.reshape(*self.out_ranks, *self.in_ranks)
        y = contract(
            self._equation,
            self.padded(x).reshape(-1, *self.in_modes),
            *out_factors,
            core,
            *in_factors,
        )
        return self.unpadded(y.flatten(1), x)

    @cached_property
    def _equation(self) -> str:
        """Inputs, factors ``o_k r_k``, core and factors ``r_k i_k``."""
        letters = iter(ascii_letters.replace("z", ""))
        sizes = (self.out_modes, self.out_ranks, self.in_ranks, self.in_modes)
        outs, out_ranks, in_ranks, ins = ("".join(islice(letters, len(n))) for n in sizes)
        out_factors = map("".join, zip(outs, out_ranks, strict=True))
        in_factors = map("".join, zip(in_ranks, ins, strict=True))
        operands = ",".join([f"z{ins}", *out_factors, out_ranks + in_ranks, *in_factors])
        return f"{operands}->z{outs}"

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` from rows of the factors."""
        out_factors, in_factors, core = self._read(torch.float32)
        flat = ids.flatten()
        weights = torch.ones(len(flat), 1, device=ids.device)
        for factor, digit in zip(
            out_factors, torch.unravel_index(flat, self.out_modes), strict=True
        ):
            weights = (weights[:, :, None] * factor[digit][:, None, :]).flatten(1)
        table = _multiply_modes(weights @ core, [factor.T for factor in in_factors])
        return self.looked_up(table, ids)

    def _read(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
        return self.out_factors.read(dtype), self.in_factors.read(dtype), self.core.read(dtype)


def _multiply_modes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each mode of ``x [n, prod from_k]`` by ``[to_k, from_k]``: ``[n, prod to_k]``."""
    count, rest = x.shape
    batch = count
    for matrix in matrices:
        rest //= matrix.shape[1]
        x = x.reshape(batch, matrix.shape[1], rest)
        x = (x[:, :, 0] @ matrix.T) if rest == 1 else matrix @ x
        batch *= matrix.shape[0]
    return x.reshape(count, math.prod(matrix.shape[0] for matrix in matrices))
