"""An embedding that looks up a table which another module owns."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix, scaled
from autocompress.layers.stand_in import StandIn


class TiedEmbedding(StandIn):
    """A lookup in another module's matrix, as the encoder and the decoder of T5 share one table.

    The matrix is referred to without being a submodule, so ``state_dict()`` holds it once, under
    its owner.

    Args:
        matrix: the owner's matrix ``[vocabulary, hidden]``.
        dtype: type of the vectors it returns.
        factor: that the rows are multiplied by in that type.
    """

    def __init__(
        self, matrix: CompressedMatrix, *, dtype: torch.dtype, factor: float = 1.0
    ) -> None:
        super().__init__(dtype)
        self._owner, self.factor = (matrix,), factor

    @property
    def matrix(self) -> CompressedMatrix:
        """The shared matrix."""
        return self._owner[0]

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return self.matrix.out_features

    @property
    def embedding_dim(self) -> int:
        """Size of one vector."""
        return self.matrix.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ``ids [...]``: ``[..., hidden]``."""
        return scaled(self.matrix.rows(ids).to(self.dtype), self.factor)
