"""A matrix as a tensor train, used without ever being multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from string import ascii_letters

import torch
from torch import Tensor

from autocompress.layers.contraction import contract
from autocompress.layers.folded import FoldedMatrix
from autocompress.layers.packed import Cores
from autocompress.numerics.tensors.tensor_train import TrainForm


class TensorTrainMatrix(FoldedMatrix):
    """``W[(o_1 .. o_d), (i_1 .. i_d)] = G_1[o_1, i_1] ... G_d[o_d, i_d]``, a matrix product.

    A core ``[r_{k-1}, o_k, i_k, r_k]`` is stored in the order ``[o_k, r_k, r_{k-1}, i_k]``, as a
    matrix that takes ``r_{k-1} * i_k`` inputs to ``o_k * r_k`` outputs.

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
        super().__init__(
            out_features,
            in_features,
            out_modes=out_modes,
            in_modes=in_modes,
            bias=bias,
            dtype=dtype,
        )
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

    @property
    def form(self) -> TrainForm:
        """See ``FoldedMatrix``."""
        return TrainForm(self.ranks[1:-1], self.out_modes, self.in_modes)

    def form_cores(self) -> list[Tensor]:
        """See ``FoldedMatrix``."""
        return [core.permute(2, 0, 3, 1) for core in self.cores.read(torch.float32)]

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, ``[..., out]`` in the dtype of ``x [..., in]``, from the cores.

        In the order that costs least for so many inputs: ``layers.contraction``.
        """
        folded = self.padded(x).reshape(-1, *self.in_modes)
        first, *rest = self.cores.read(x.dtype)
        # Ranks of 1 at the ends are left out, as they are of no concern to the order.
        cores = [first[:, :, 0], *rest[:-1], rest[-1][:, 0]] if rest else [first[:, 0, 0]]
        return self.unpadded(contract(self._equation, folded, *cores).flatten(1), x)

    @cached_property
    def _equation(self) -> str:
        """Inputs ``z i_1 .. i_d``, cores ``o_k r_k r_{k-1} i_k`` without the outer ranks of 1."""
        order = len(self.out_modes)
        letters = iter(ascii_letters.replace("z", ""))
        outs, ins, ranks = ("".join(islice(letters, n)) for n in (order, order, order - 1))
        bounds = ["", *ranks, ""]
        cores = [outs[k] + bounds[k + 1] + bounds[k] + ins[k] for k in range(order)]
        return f"z{ins},{','.join(cores)}->z{outs}"

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids]`` for ``ids [...]``: ``[..., in]`` from slices of the cores."""
        flat = ids.flatten()
        digits = torch.unravel_index(flat, self.out_modes)
        result = torch.ones(len(flat), 1, 1, dtype=torch.float32, device=ids.device)
        for core, digit in zip(self.cores.read(torch.float32), digits, strict=True):
            _, after, before, columns = core.shape
            pieces = core.permute(0, 2, 3, 1)[digit].reshape(len(flat), before, columns * after)
            result = (result @ pieces).reshape(len(flat), -1, after)
        return self.looked_up(result[..., 0], ids)
