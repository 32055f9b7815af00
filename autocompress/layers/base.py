"""What every stored form of a matrix can do, and the modules that put it to use in a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CompressedMatrix(nn.Module):
    """A matrix ``W [out, in]`` held in some stored form, usable in place of ``nn.Linear``.

    Subclasses hold exactly the tensors that are stored on disk, floating-point ones as parameters
    and integer codes as buffers, so that ``state_dict()`` *is* the stored form and its size is the
    cost. They are constructible without data (``torch.device("meta")``) from their settings alone.

    Attributes:
        out_features: rows of W.
        in_features: columns of W.
        bias: parameter ``[out]`` or ``None``.
    """

    def __init__(
        self, out_features: int, in_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.bias = (
            nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False)
            if bias
            else None
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids] [..., in]`` for integer ``ids [...]``, if possible without building W."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T + bias`` for ``x [..., in]``: ``[..., out]``."""
        y = self.multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return (
            f"out_features={self.out_features}, in_features={self.in_features}, "
            f"bias={self.bias is not None}"
        )


class CompressedEmbedding(nn.Module):
    """An embedding whose table ``[vocabulary, hidden]`` is a compressed matrix.

    Args:
        matrix: the table; its ``out_features`` is the vocabulary.
        dtype: type of the vectors it returns.
    """

    def __init__(self, matrix: CompressedMatrix, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.dtype = dtype

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
        return self.matrix.rows(ids).to(self.dtype)


class TiedHead(nn.Module):
    """An output head that multiplies by the matrix which another module owns and stores.

    The matrix is referred to without being a submodule, so ``state_dict()`` holds it once, under
    its owner.

    Args:
        matrix: the owner's matrix ``[vocabulary, hidden]``.
        bias: the head's own bias ``[vocabulary]`` or ``None``.
    """

    def __init__(self, matrix: CompressedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._owner = (matrix,)
        self.bias = bias

    @property
    def matrix(self) -> CompressedMatrix:
        """The shared matrix."""
        return self._owner[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T + bias`` for ``x [..., hidden]``: ``[..., vocabulary]``."""
        y = self.matrix.multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)
