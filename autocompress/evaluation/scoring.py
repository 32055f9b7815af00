"""How a model scores on windows, and how far it is there from the dense one, by its objective.

Beside the divergence stands the cosine between a model's hidden states before the head and the
dense model's. All are means over every compared row, so a short last window weighs by its length.
The work beyond the forward pass is done in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from autocompress.evaluation.objective import Objective, Rows
from autocompress.evaluation.objectives import objective_for
from autocompress.evaluation.windows import LOGIT_BYTES, LOGIT_BYTES_ACCELERATOR, Windows
from autocompress.progress import Advance
from autocompress.records import Gauge, WindowScores

BLOCK_ELEMENTS = 2**19  # of outputs at a time: 2 MB of fp32


@dataclass(frozen=True)
class Score:
    """How well a model does on a text, in the terms of its objective.

    Attributes:
        figure: what people read, made of ``loss``; infinite when that overflows, NaN when the
            outputs hold NaN.
        loss: mean over the compared rows.
        divergence: mean divergence from the dense model; NaN without a teacher.
        tokens: number of compared rows.
        windows: the scores window by window, for paired comparisons.
        cosine: mean cosine between the hidden states before the head and the dense model's at each
            of these tokens; NaN without a teacher, or where the model names no head.
    """

    figure: float
    loss: float
    divergence: float
    tokens: int
    windows: WindowScores = field(repr=False, compare=False)
    cosine: float = math.nan


class _WindowSums:
    """Sums over the rows of each window, in fp64 on the device until all is scored."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.losses: list[Tensor] = []
        self.divergences: list[Tensor] = []
        self.cosines: list[Tensor] = []

    def add(
        self,
        losses: list[Tensor],
        divergences: list[Tensor] | None = None,
        cosines: Tensor | None = None,
    ) -> None:
        """Add a window: blocks ``[m]``, cosines ``[length]``; NaN what is not known."""
        loss = torch.cat(losses).double()
        unknown = loss.new_tensor(math.nan)
        self.tokens.append(len(loss))
        self.losses.append(loss.sum())
        self.divergences.append(torch.cat(divergences).double().sum() if divergences else unknown)
        self.cosines.append(unknown if cosines is None else cosines.double().sum())

    def score(self, gauge: Gauge) -> Score:
        """Turn the sums into means, over all rows and by window."""
        sums = torch.stack(
            [torch.stack(each) for each in (self.losses, self.divergences, self.cosines)]
        ).cpu()
        tokens = torch.tensor(self.tokens)
        loss, divergence, cosine = (sums.sum(1) / tokens.sum()).tolist()
        divergence = 0.0 if divergence < 0 else divergence  # rounding of one that is zero
        by_window = WindowScores(tuple(self.tokens), *map(tuple, (sums[:2] / tokens).tolist()))
        count = int(tokens.sum())
        return Score(gauge.figure_of(loss), loss, divergence, count, by_window, cosine)


class Teacher:
    """The dense model's outputs on some windows, kept to compare compressed models with.

    Attributes:
        objective: by which they are compared.
        windows: the windows it was made on.
        score: the dense model's own score.
    """

    def __init__(
        self,
        objective: Objective,
        windows: Windows,
        rows: Rows,
        score: Score,
        hidden: Tensor | None = None,
    ) -> None:
        self.objective, self.windows, self.score = objective, windows, score
        self._rows, self._hidden = rows, hidden

    @classmethod
    def of(
        cls,
        model: Any,
        windows: Windows,
        *,
        advance: Advance | None = None,
        objective: Objective | None = None,
    ) -> Teacher:
        """Run the dense model once and keep its outputs.

        Hidden states take 2 bytes an element beside them.

        Args:
            model: the dense model.
            windows: what to score.
            advance: called with the number of windows done since.
            objective: the model's own when left out.

        Raises:
            ModelError: its objective cannot score it.
        """
        objective = objective or objective_for(model)
        objective.check_scorable(model, windows)
        rows: Rows | None = None
        sums = _WindowSums()
        states: list[Tensor] = []
        with torch.inference_mode():
            for ids, outputs, hidden in _window_outputs(model, windows, objective, advance):
                if rows is None:
                    count = sum(objective.counts(windows))
                    with torch.inference_mode(mode=False):  # else nothing could be differentiated
                        rows = objective.rows(count, outputs.shape[-1], outputs.device)
                losses = []
                for span, block in _prepared_blocks(outputs, objective):
                    rows.add(block)
                    found = objective.losses(block, ids[span])
                    losses.append(block.new_zeros(len(block)) if found is None else found)
                sums.add(losses)
                if hidden is not None:
                    states.append(torch.nn.functional.normalize(hidden.float(), dim=-1).half())
        assert rows is not None, "windows always hold at least one"
        held = torch.cat(states) if states else None
        return cls(objective, windows, rows, sums.score(objective.gauge), held)

    def tensors(self) -> dict[str, Tensor]:
        """What it takes to make it again without the model; see ``restored``."""
        of_windows = torch.tensor(self.score.windows.loss, dtype=torch.float64)
        total = torch.tensor(self.score.loss, dtype=torch.float64)
        hidden = {} if self._hidden is None else {"hidden": self._hidden}
        return {**self._rows.tensors(), **hidden, "loss": total, "window_loss": of_windows}

    @classmethod
    def restored(
        cls, objective: Objective, windows: Windows, tensors: Mapping[str, Tensor]
    ) -> Teacher:
        """The teacher on these windows that ``tensors`` was called of."""
        loss, of_windows = float(tensors["loss"]), tuple(tensors["window_loss"].tolist())
        counts = objective.counts(windows)
        by_window = WindowScores(counts, of_windows, (math.nan,) * len(counts))
        figure = objective.gauge.figure_of(loss)
        score = Score(figure, loss, math.nan, sum(counts), by_window)
        return cls(objective, windows, objective.restored(tensors), score, tensors.get("hidden"))

    @property
    def own_score(self) -> Score:
        """The dense model's score against itself: no divergence, a cosine of one."""
        nothing = (0.0,) * len(self.score.windows.tokens)
        cosine = math.nan if self._hidden is None else 1.0
        windows = replace(self.score.windows, divergence=nothing)
        return replace(self.score, divergence=0.0, windows=windows, cosine=cosine)

    def covers(self, windows: Windows) -> bool:
        """Whether ``windows`` are these windows or their first ones."""
        mine = self.windows
        if windows is mine:
            return True
        whole = len(windows.ids) % mine.stride == 0 or len(windows.ids) == len(mine.ids)
        return (
            windows.context == mine.context
            and windows.begin == mine.begin
            and whole
            and torch.equal(windows.ids, mine.ids[: len(windows.ids)])
        )

    def divergence(self, start: int, outputs: Tensor) -> Tensor:
        """How far prepared ``outputs [m, width]`` are from the rows ``start ...``: fp32 ``[m]``."""
        return self._rows.divergence(start, outputs)

    def cosine(self, start: int, hidden: Tensor | None) -> Tensor | None:
        """Cosine between ``hidden [m, hidden]`` and the rows ``start ...``: fp32 ``[m]``."""
        if hidden is None or self._hidden is None:
            return None
        dense = self._hidden[start : start + len(hidden)].float()
        return torch.nn.functional.cosine_similarity(hidden.float(), dense, dim=-1)


def score(
    model: Any, windows: Windows, teacher: Teacher | None = None, *, advance: Advance | None = None
) -> Score:
    """Score a model on windows.

    Args:
        model: in eval mode, dense or compressed.
        windows: what to score.
        teacher: the dense model's outputs on these windows, or on more that start with these.
        advance: called with the number of windows done since.

    Raises:
        ModelError: its objective cannot score it (checked without a teacher; making one checks
            too).
        ValueError: the teacher was made on other windows.
    """
    (whole,) = scores(model, windows, teacher, advance=advance)
    return whole


def scores(
    model: Any,
    windows: Windows,
    teacher: Teacher | None = None,
    stages: Sequence[int] = (),
    *,
    advance: Advance | None = None,
) -> Iterator[Score]:
    """Score a model on more and more windows: after each stage the score of all so far.

    Args:
        model: see ``score``.
        windows: see ``score``.
        teacher: see ``score``.
        stages: numbers of first windows to stop after, rising and fewer than there are.
        advance: see ``score``.

    Yields:
        A score for each stage, and one of all windows.
    """
    objective = objective_for(model) if teacher is None else teacher.objective
    if teacher is None:
        objective.check_scorable(model, windows)
    elif not teacher.covers(windows):
        raise ValueError("the teacher was made on other windows")
    sums = _WindowSums()
    row = 0
    for start, stop in pairwise((0, *stages, len(windows))):
        with torch.inference_mode():
            part = windows.part(start, stop)
            for ids, outputs, hidden in _window_outputs(model, part, objective, advance):
                losses, divergences = [], []
                for span, block in _prepared_blocks(outputs, objective):
                    if teacher is not None:
                        divergences.append(teacher.divergence(row + span.start, block))
                    found = objective.losses(block, ids[span])
                    if found is None:
                        unknown = block.new_full((len(block),), math.nan)
                        found = divergences[-1] if divergences else unknown
                    losses.append(found)
                cosines = None if teacher is None else teacher.cosine(row, hidden)
                row += len(outputs)
                sums.add(losses, divergences, cosines)
        yield sums.score(objective.gauge)


def divergence_sum(teacher: Teacher, start: int, outputs: Tensor) -> Tensor:
    """Divergence from the dense model's rows ``start ...``, summed; it can be differentiated.

    Args:
        teacher: has the dense model's outputs.
        start: first row.
        outputs: ``[m, width]``.
    """
    parts = [
        teacher.divergence(start + span.start, block).sum()
        for span, block in _prepared_blocks(outputs, teacher.objective)
    ]
    return torch.stack(parts).sum()


def _window_outputs(
    model: Any, windows: Windows, objective: Objective, advance: Advance | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Run a model on each window.

    Yields:
        The last ``m`` tokens ``[m]``, the ``m`` outputs that are compared ``[m, width]``, and the
        inputs of the head that these come from ``[m, hidden]``, where the model names its head.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    logit_bytes = LOGIT_BYTES if device.type == "cpu" else LOGIT_BYTES_ACCELERATOR
    for batch in windows.batches(objective.width(model), logit_bytes):
        batch = batch.to(device)
        with _inputs_of_head(model) as inputs:
            outputs = objective.output_of(model(input_ids=batch, use_cache=False))
        assert outputs is not None, "its objective has been asked"
        hidden = inputs[0] if inputs and inputs[0].shape[:2] == outputs.shape[:2] else None
        rows = objective.compared(batch.shape[1], windows.given)
        compared = slice(rows.start, rows.stop)
        for place, ids in enumerate(batch):
            states = None if hidden is None else hidden[place, compared]
            yield ids[len(ids) - len(rows) :], outputs[place, compared], states
        if advance is not None:
            advance(len(batch))


@contextmanager
def _inputs_of_head(model: Any) -> Iterator[list[Tensor]]:
    """Note what the head, dense or compressed, is given: ``[batch, length, hidden]`` a call."""
    seen: list[Tensor] = []
    try:
        head = model.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # a model without one says so in either way
        head = None
    if head is None:
        yield seen
        return
    hook = head.register_forward_pre_hook(lambda _head, inputs: seen.extend(inputs[:1]))
    try:
        yield seen
    finally:
        hook.remove()


def _prepared_blocks(outputs: Tensor, objective: Objective) -> Iterator[tuple[slice, Tensor]]:
    rows = max(1, BLOCK_ELEMENTS // outputs.shape[-1])
    start = 0
    # Split, not sliced: the gradient of each slice would be as large as all outputs.
    for block in torch.split(outputs, rows):
        yield slice(start, start + len(block)), objective.prepared(block)
        start += len(block)
