"""What every stored form of a matrix can do, and the modules that put it to use in a model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from autocompress.layers.bonds import Bonds
from autocompress.layers.packed import PackedTable
from autocompress.layers.stand_in import KeepingTypes, StandIn, initialised
from autocompress.numerics.metric import Metric


class CompressedMatrix(StandIn):
    """A matrix ``W [out, in]`` held in some stored form, usable in place of ``nn.Linear``.

    Subclasses hold exactly the tensors that are stored on disk, floating-point ones as parameters
    and integer codes as buffers, so that ``state_dict()`` *is* the stored form and its size is the
    cost. They are constructible without data (``torch.device("meta")``) from their settings alone.
    Stored tensors keep their types when the model is cast; what ``rows`` returns follows.

    Attributes:
        out_features: rows of W.
        in_features: columns of W.
        bias: parameter ``[out]`` or ``None``.
    """

    keeps_types: ClassVar[bool] = True
    factors_prefix: ClassVar[str] = ""  # before the names of what ``factors`` stores

    def __init__(
        self, out_features: int, in_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(dtype)
        self.out_features, self.in_features = out_features, in_features
        self.bias = (
            nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False)
            if bias
            else None
        )
        self._dense_dtype: torch.dtype | None = None
        self._dense: Tensor | None = None

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T`` for ``x [..., in]``: ``[..., out]`` in the dtype of ``x``."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Return ``W[ids] [..., in]`` for integer ``ids [...]``, if possible without building W."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """Return W ``[out, in]`` in fp32."""
        raise NotImplementedError

    @property
    def factors(self) -> CompressedMatrix:
        """What has the ranks: itself, or a part of it."""
        return self

    def bonds(self, metric: Metric | None = None) -> Bonds | None:
        """Its bonds, or ``None`` where it, or what has its ranks, is not factorised.

        Args:
            metric: what a change of the matrix costs. Values are those of the matrix in coordinates
                in which that is the identity.
        """
        return None if self.factors is self else self.factors.bonds(metric)

    def randomise_(self) -> Self:
        """Fill the stored tensors with weights at random that they may hold, to time the layer."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.random_(0, 256)
        return self

    def cache_dense_(self, dtype: torch.dtype | None) -> Self:
        """Multiply by a dense copy of W from now on, or with ``None`` by the stored form again.

        The copy is made at the next product of inputs of this type, is never stored, and costs the
        memory of the dense matrix (``cached_bytes``). It does not follow later changes of the
        stored tensors, but for loading, casting and moving.
        """
        self._dense_dtype, self._dense = dtype, None
        return self

    @property
    def cached_dtype(self) -> torch.dtype | None:
        """Type of the inputs that are multiplied by a dense copy, see ``cache_dense_``."""
        return self._dense_dtype

    @property
    def qweight(self) -> Tensor:
        """A stored tensor. PEFT asks layers without a dense weight by this name where they are."""
        return next(chain(self.parameters(), self.buffers()))

    @property
    def cached_bytes(self) -> int:
        """Memory beyond the stored tensors: the dense copy, and layouts that kernels read."""
        tables = [part.kernel_bytes for part in self.modules() if isinstance(part, PackedTable)]
        return sum(tables) + (0 if self._dense is None else self._dense.nbytes)

    def product(self, x: Tensor) -> Tensor:
        """``multiply``, or the product with the dense copy where ``cache_dense_`` asked for one."""
        if x.dtype != self._dense_dtype:
            return self.multiply(x)
        if self._dense is None:
            self._dense = self.to_dense().detach().to(x.dtype)
        return x @ self._dense.T

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T + bias`` for ``x [..., in]``: ``[..., out]``."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._dense = None
        return super()._apply(KeepingTypes(fn) if self.keeps_types else fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._dense = None
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return (
            f"out_features={self.out_features}, in_features={self.in_features}, "
            f"bias={self.bias is not None}"
        )


def scaled(rows: Tensor, factor: float) -> Tensor:
    """Rows of a table times a constant, as models do that scale their token vectors."""
    return rows if factor == 1.0 else rows * factor


class CompressedEmbedding(StandIn):
    """An embedding whose table ``[vocabulary, hidden]`` is a compressed matrix.

    Args:
        matrix: the table; its ``out_features`` is the vocabulary.
        dtype: type of the vectors it returns.
        factor: that the rows are multiplied by in that type.
    """

    def __init__(
        self, matrix: CompressedMatrix, *, dtype: torch.dtype, factor: float = 1.0
    ) -> None:
        super().__init__(dtype)
        self.matrix, self.factor = matrix, factor

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
        rows = self.matrix.rows(ids.to(self.matrix.qweight.device))
        return scaled(rows.to(self.dtype), self.factor)

    def _shown(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As in other layers, but on a device: Llama 4 sends the ids to that of the weight.

        One element, not a number, stands for all: to compute with it gives no number.
        """
        return initialised(torch.full((), torch.nan, dtype=dtype, device="cpu").expand(shape))


class TiedHead(StandIn):
    """An output head that multiplies by the matrix which another module owns and stores.

    The matrix is referred to without being a submodule, so ``state_dict()`` holds it once, under
    its owner.

    Args:
        matrix: the owner's matrix ``[vocabulary, hidden]``.
        bias: the head's own bias ``[vocabulary]`` or ``None``.
    """

    def __init__(self, matrix: CompressedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__(matrix.dtype)
        self._owner = (matrix,)
        self.bias = bias

    @property
    def matrix(self) -> CompressedMatrix:
        """The shared matrix."""
        return self._owner[0]

    @property
    def qweight(self) -> Tensor:
        """See ``CompressedMatrix``."""
        return self.matrix.qweight

    @property
    def out_features(self) -> int:
        """Size of the vocabulary."""
        return self.matrix.out_features

    @property
    def in_features(self) -> int:
        """Size of one vector."""
        return self.matrix.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T + bias`` for ``x [..., hidden]``: ``[..., vocabulary]``."""
        y = self.matrix.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)
