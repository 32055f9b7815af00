"""What the matrices whose sides are folded into modes have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.bonds import FoldedBonds
from autocompress.numerics.kronecker import gram_roots, root_whitening
from autocompress.numerics.metric import Metric
from autocompress.numerics.tensors.tensor_fit import TensorForm


class FoldedMatrix(CompressedMatrix):
    """A matrix of cores. Rows and columns beyond ``out`` and ``in`` are padding.

    Attributes:
        out_modes: modes of the rows.
        in_modes: modes of the columns.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        out_modes: Sequence[int],
        in_modes: Sequence[int],
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.out_modes, self.in_modes = tuple(out_modes), tuple(in_modes)

    @property
    def form(self) -> TensorForm:
        """How the cores make the matrix."""
        raise NotImplementedError

    def form_cores(self) -> list[Tensor]:
        """The cores in the order and shape of the form, in fp32."""
        raise NotImplementedError

    def bonds(self, metric: Metric | None = None) -> FoldedBonds:
        """See ``CompressedMatrix``; the metric is met nearly, see ``root_whitening``."""
        whitening = None
        if metric is not None:
            device = next(self.parameters()).device
            whitening = root_whitening(gram_roots(metric), self.out_modes, self.in_modes, device)
        return FoldedBonds(self.form, self.form_cores, whitening)

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        matrix = self.form.multiply_out(self.form_cores())
        return matrix[: self.out_features, : self.in_features].contiguous()

    def padded(self, x: Tensor) -> Tensor:
        """Inputs ``x [..., in]`` as ``[n, product of the in modes]``."""
        flat = x.reshape(-1, self.in_features)
        return pad(flat, (0, math.prod(self.in_modes) - self.in_features))

    def unpadded(self, y: Tensor, like: Tensor) -> Tensor:
        """Outputs ``y [n, product of the out modes]`` as ``[..., out]``, for inputs ``like``."""
        return y[:, : self.out_features].reshape(*like.shape[:-1], self.out_features)

    def looked_up(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows ``table [n, product of the in modes]`` as ``[..., in]`` for ``ids [...]``."""
        rows = table[:, : self.in_features].to(self.dtype)
        return rows.reshape(*ids.shape, self.in_features)
