"""What quality means for a kind of model: the seam between models and all that judges them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from autocompress.evaluation.windows import Windows
from autocompress.records import Gauge


class Rows(Protocol):
    """What is kept of the dense model's outputs, one row for each that is compared."""

    def add(self, outputs: Tensor, /) -> None:
        """Append ``[m, width]``, as ``Objective.prepared`` gives them."""

    def divergence(self, start: int, outputs: Tensor, /) -> Tensor:
        """How far ``outputs [m, width]`` are from the rows ``start ...``: ``[m]``."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of as many rows, to make them again; see ``Objective.restored``."""


class Objective(ABC):
    """Scores models of one kind. It has settings at most, and holds nothing of a model.

    A model turns a window of tokens into outputs ``[rows, width]``, such as the logits of each
    token. Some of these rows are compared with the dense model's: their mean divergence ranks
    plans. Beside it stands a loss, which people read as a figure; see ``Gauge``.

    Attributes:
        name: tells what is kept for one objective from what is kept for another.
        gauge: the words and the scale for people.
    """

    name: ClassVar[str]
    gauge: ClassVar[Gauge]

    @abstractmethod
    def serves(self, model: Any) -> bool:
        """Whether a model is of this kind, by what it is; no forward pass."""

    @abstractmethod
    def check_scorable(self, model: Any, windows: Windows) -> None:
        """Make sure that a model can be scored on windows.

        Raises:
            ModelError: its outputs are not what is compared.
            DataError: a token that it does not know.
        """

    def prepare(self, ids: Tensor, context: int, begin: tuple[int, ...] = ()) -> Windows:
        """Cut the tokens ``ids [n]`` of a text into the windows that are scored."""
        return Windows(ids, context, begin)

    @abstractmethod
    def width(self, model: Any) -> int:
        """Width of a model's outputs."""

    @abstractmethod
    def output_of(self, returned: Any) -> Tensor | None:
        """Outputs ``[b, rows, width]`` in what a model returns; ``None`` where there are none."""

    @abstractmethod
    def compared(self, length: int, given: int) -> range:
        """Which rows of the outputs of a window are compared.

        Args:
            length: of the window, in tokens.
            given: tokens at its start that count as known; see ``Windows``.
        """

    def counts(self, windows: Windows) -> tuple[int, ...]:
        """How many rows of each window are compared."""
        return tuple(len(self.compared(len(window), windows.given)) for window in windows)

    @abstractmethod
    def prepared(self, outputs: Tensor) -> Tensor:
        """Turn outputs ``[m, width]`` into what is compared, in fp32; it can be differentiated."""

    def losses(self, outputs: Tensor, ids: Tensor) -> Tensor | None:
        """Loss of each compared row on the text itself: ``[m]``, in the unit of the divergence.

        Args:
            outputs: ``[m, width]`` as prepared.
            ids: the tokens ``[m]`` at the end of the same windows, as many as are compared.

        Returns:
            ``None`` where the loss is the divergence, and the dense model's is zero.
        """
        del outputs, ids
        return None

    def implausible(self, model: Any, loss: float, text: str) -> str | None:
        """Say that a dense model does so badly on a text that figures on it mean little, if so.

        Args:
            model: the dense model.
            loss: mean, as scored.
            text: what the text is called.
        """
        del model, loss, text
        return None

    @abstractmethod
    def rows(self, count: int, width: int, device: torch.device, *, training: bool = False) -> Rows:
        """Make room for rows of the dense model.

        Args:
            count: of rows.
            width: of each.
            device: where they lie.
            training: keep few bytes and compute in fp32; else as exactly as can be.
        """

    def row_bytes(self, model: Any) -> int:
        """Bytes that are kept of each row of a dense model."""
        kept = self.rows(1, self.width(model), torch.device("cpu")).tensors()
        return sum(tensor.nbytes for tensor in kept.values())

    @abstractmethod
    def restored(self, tensors: Mapping[str, Tensor], *, training: bool = False) -> Rows:
        """The rows that ``Rows.tensors`` gave."""

    @abstractmethod
    def drawn_loss(self, outputs: Tensor, draws: torch.Generator) -> Tensor:
        """What calibration differentiates, summed over the rows ``outputs [m, width]`` of a model.

        The Gram matrix of its gradients over many draws is to be that of the quadratic form which
        predicts the divergence.

        Args:
            outputs: in fp32, as ``output_of`` gives them.
            draws: randomness, on the CPU.
        """
