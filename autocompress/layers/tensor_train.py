"""A matrix as a tensor train, used without ever being multiplied out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.packed import Cores
from autocompress.numerics.tensor_train import train_to_matrix

WORK_ELEMENTS = 2**22  # largest intermediate of a product; more inputs than fit are taken in turns


class TensorTrainMatrix(CompressedMatrix):
    """``W[(o_1 .. o_d), (i_1 .. i_d)] = G_1[o_1, i_1] ... G_d[o_d, i_d]``, a matrix product.

    A core ``[r_{k-1}, o_k, i_k, r_k]`` is stored in the order ``[o_k, r_k, r_{k-1}, i_k]``, as a
    matrix that takes ``r_{k-1} * i_k`` inputs to ``o_k * r_k`` outputs. Rows and columns beyond
    ``out`` and ``in`` are padding.

    Attributes:
        cores: ``d`` factors.
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
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.dtype, self.out_modes, self.in_modes = dtype, tuple(out_modes), tuple(in_modes)
        self.ranks = (1, *ranks, 1)
        self.cores = Cores(self.core_shapes(), bits=bits, dtype=dtype)

    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """Stored shape ``[o_k, r_k, r_{k-1}, i_k]`` of each core."""
        return [
            (o, after, before, i)
            for o, i, before, after in zip(
                self.out_modes, self.in_modes, self.ranks[:-1], self.ranks[1:], strict=True
            )
        ]

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, ``[..., out]`` in the dtype of ``x [..., in]``, core by core."""
        flat = pad(
            x.reshape(-1, self.in_features), (0, math.prod(self.in_modes) - self.in_features)
        )
        cores = self.cores.read(x.dtype)
        parts = [
            self._contract(part, cores)
            for part in torch.split(flat, max(1, WORK_ELEMENTS // self._widest()))
        ]
        return torch.cat(parts)[:, : self.out_features].reshape(*x.shape[:-1], self.out_features)

    def _contract(self, x: Tensor, cores: list[Tensor]) -> Tensor:
        count, batch, rest = x.shape[0], x.shape[0], x.shape[1]
        for core in cores:
            out, after, before, columns = core.shape
            matrix = core.reshape(out * after, before * columns)
            rest //= columns
            x = x.reshape(batch, before * columns, rest)
            x = (x[:, :, 0] @ matrix.T) if rest == 1 else matrix @ x
            batch *= out
        return x.reshape(count, math.prod(self.out_modes))

    def _widest(self) -> int:
        """Elements per input of the largest intermediate."""
        widths, rows, rest = [], 1, math.prod(self.in_modes)
        for out, after, _, columns in self.core_shapes():
            rows, rest = rows * out, rest // columns
            widths.append(rows * after * rest)
        return max(widths)

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` from slices of the cores."""
        flat = ids.flatten()
        digits = torch.unravel_index(flat, self.out_modes)
        result = torch.ones(len(flat), 1, 1, dtype=torch.float32, device=ids.device)
        for core, digit in zip(self.cores.read(torch.float32), digits, strict=True):
            _, after, before, columns = core.shape
            pieces = core.permute(0, 2, 3, 1)[digit].reshape(len(flat), before, columns * after)
            result = (result @ pieces).reshape(len(flat), -1, after)
        return result[:, : self.in_features, 0].to(self.dtype).reshape(*ids.shape, self.in_features)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        matrix = train_to_matrix(
            [core.permute(2, 0, 3, 1) for core in self.cores.read(torch.float32)]
        )
        return matrix[: self.out_features, : self.in_features].contiguous()
