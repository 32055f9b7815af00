"""Perplexity, and how far a model is from the dense one over the same tokens.

That is the KL divergence of its predictions, and the cosine between its hidden states before the
head and the dense model's. All are means over every predicted token, so a short last window weighs
by its length. The work beyond the forward pass is one log-softmax and one product with the
teacher's probabilities, in blocks that stay in the processor's cache.
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

from autocompress.errors import DataError, ModelError
from autocompress.evaluation.divergence import TOP_K, ExactRows, Rows, TopRows, restored
from autocompress.evaluation.encoding import vocabulary_of
from autocompress.evaluation.windows import LOGIT_BYTES, LOGIT_BYTES_ACCELERATOR, Windows
from autocompress.progress import Advance
from autocompress.records import WindowScores

EXACT_VOCABULARY = 8192  # up to this size the teacher keeps every probability
BLOCK_ELEMENTS = 2**19  # of logits at a time: 2 MB of fp32
SCORABLE = (
    "a causal language model, such as GPT-2, GPT-NeoX, OPT, Llama, Mistral, Qwen, Gemma or Phi"
)


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        perplexity: exponential of ``nll``; infinite when that overflows, NaN when the logits hold
            NaN.
        nll: mean negative log-likelihood, nats per predicted token.
        kl: mean divergence ``KL(dense || model)``, nats per predicted token; NaN without a teacher.
        tokens: number of predicted tokens.
        windows: the scores window by window, for paired comparisons.
        cosine: mean cosine between the hidden states before the head and the dense model's at each
            of these tokens; NaN without a teacher, or where the model names no head.
    """

    perplexity: float
    nll: float
    kl: float
    tokens: int
    windows: WindowScores = field(repr=False, compare=False)
    cosine: float = math.nan


class _WindowSums:
    """Sums over the tokens of each window, in fp64 on the device until all is scored."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.nll: list[Tensor] = []
        self.kl: list[Tensor] = []
        self.cosine: list[Tensor] = []

    def add(
        self,
        nll: list[Tensor],
        divergence: list[Tensor] | None = None,
        cosine: Tensor | None = None,
    ) -> None:
        """Add a window: blocks ``[m]`` in nats, cosines ``[length]``; NaN what is not known."""
        losses = torch.cat(nll).double()
        self.tokens.append(len(losses))
        self.nll.append(losses.sum())
        self.kl.append(
            torch.cat(divergence).double().sum() if divergence else losses.new_tensor(math.nan)
        )
        self.cosine.append(losses.new_tensor(math.nan) if cosine is None else cosine.double().sum())

    def score(self) -> Score:
        """Turn the sums into means, over all tokens and by window."""
        sums = torch.stack([torch.stack(each) for each in (self.nll, self.kl, self.cosine)]).cpu()
        tokens = torch.tensor(self.tokens)
        nll, kl, cosine = (sums.sum(1) / tokens.sum()).tolist()
        kl = 0.0 if kl < 0 else kl  # rounding of a divergence that is zero
        by_window = WindowScores(tuple(self.tokens), *map(tuple, (sums[:2] / tokens).tolist()))
        return Score(_perplexity(nll), nll, kl, int(tokens.sum()), by_window, cosine)


def _perplexity(nll: float) -> float:
    return math.exp(nll) if not nll > 700 else math.inf


class Teacher:
    """The dense model's predictions on some windows, kept to compare compressed models with.

    Attributes:
        windows: the windows it was made on.
        score: the dense model's own score.
    """

    def __init__(
        self, windows: Windows, rows: Rows, score: Score, hidden: Tensor | None = None
    ) -> None:
        self.windows, self.score = windows, score
        self._rows, self._hidden = rows, hidden

    @classmethod
    def of(
        cls,
        model: Any,
        windows: Windows,
        *,
        advance: Advance | None = None,
        exact_vocabulary: int = EXACT_VOCABULARY,
    ) -> Teacher:
        """Run the dense model once and keep its distributions.

        They take 2 bytes an element, or 4 kB a token with ``TOP_K``; hidden states 2 bytes an
        element.

        Args:
            model: causal language model.
            windows: what to predict.
            advance: called with the number of windows done since.
            exact_vocabulary: the largest vocabulary for which every probability is kept.

        Raises:
            ModelError: not a causal language model.
        """
        check_scorable(model, windows)
        rows: Rows | None = None
        sums = _WindowSums()
        states: list[Tensor] = []
        with torch.inference_mode():
            for targets, logits, hidden in _window_logits(model, windows, advance):
                vocabulary = logits.shape[-1]
                if rows is None and vocabulary <= exact_vocabulary:
                    rows = ExactRows(windows.tokens, vocabulary, logits.device)
                elif rows is None:
                    rows = TopRows(windows.tokens, min(TOP_K, vocabulary), logits.device)
                nll = []
                for span, logs in _log_softmax_blocks(logits):
                    rows.add(logs)
                    nll.append(_negative_log_likelihood(logs, targets[span]))
                sums.add(nll)
                if hidden is not None:
                    states.append(torch.nn.functional.normalize(hidden.float(), dim=-1).half())
        assert rows is not None, "windows always hold at least one"
        return cls(windows, rows, sums.score(), torch.cat(states) if states else None)

    def tensors(self) -> dict[str, Tensor]:
        """What it takes to make it again without the model; see ``restored``."""
        of_windows = torch.tensor(self.score.windows.nll, dtype=torch.float64)
        total = torch.tensor(self.score.nll, dtype=torch.float64)
        hidden = {} if self._hidden is None else {"hidden": self._hidden}
        return {**self._rows.tensors(), **hidden, "nll": total, "window_nll": of_windows}

    @classmethod
    def restored(cls, windows: Windows, tensors: Mapping[str, Tensor]) -> Teacher:
        """The teacher on these windows that ``tensors`` was called of."""
        nll, of_windows = float(tensors["nll"]), tuple(tensors["window_nll"].tolist())
        counts = tuple(len(window) - windows.given for window in windows)
        unknown = (math.nan,) * len(counts)
        score = Score(
            _perplexity(nll), nll, math.nan, sum(counts), WindowScores(counts, of_windows, unknown)
        )
        return cls(windows, restored(tensors), score, tensors.get("hidden"))

    @property
    def own_score(self) -> Score:
        """The dense model's score against itself: no divergence, a cosine of one."""
        nothing = (0.0,) * len(self.score.windows.tokens)
        cosine = math.nan if self._hidden is None else 1.0
        windows = replace(self.score.windows, kl=nothing)
        return replace(self.score, kl=0.0, windows=windows, cosine=cosine)

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

    def divergence(self, start: int, log_probabilities: Tensor) -> Tensor:
        """KL of ``log_probabilities [m, vocabulary]`` from the rows ``start ...``: fp32 ``[m]``."""
        return self._rows.divergence(start, log_probabilities)

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
        model: causal language model in eval mode, dense or compressed.
        windows: what to predict.
        teacher: the dense model's predictions on these windows, or on more that start with these.
        advance: called with the number of windows done since.

    Raises:
        ModelError: not a causal language model (checked without a teacher; making one checks too).
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
    if teacher is None:
        check_scorable(model, windows)
    elif not teacher.covers(windows):
        raise ValueError("the teacher was made on other windows")
    sums = _WindowSums()
    row = 0
    for start, stop in pairwise((0, *stages, len(windows))):
        with torch.inference_mode():
            part = windows.part(start, stop)
            for targets, logits, hidden in _window_logits(model, part, advance):
                nll, divergence = [], []
                for span, logs in _log_softmax_blocks(logits):
                    nll.append(_negative_log_likelihood(logs, targets[span]))
                    if teacher is not None:
                        divergence.append(teacher.divergence(row + span.start, logs))
                cosine = None if teacher is None else teacher.cosine(row, hidden)
                row += len(targets)
                sums.add(nll, divergence, cosine)
        yield sums.score()


def divergence_sum(teacher: Teacher, start: int, logits: Tensor) -> Tensor:
    """KL from the dense model's rows ``start ...``, summed; it can be differentiated.

    Args:
        teacher: has the dense model's predictions.
        start: row of the first token.
        logits: ``[m, vocabulary]``.
    """
    parts = [
        teacher.divergence(start + span.start, logs).sum()
        for span, logs in _log_softmax_blocks(logits)
    ]
    return torch.stack(parts).sum()


def _window_logits(
    model: Any, windows: Windows, advance: Advance | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Run a model on each window.

    Yields:
        The ``m`` targets ``[m]``, their logits ``[m, vocabulary]``, and the inputs of the head that
        these come from ``[m, hidden]``, where the model names its head.
    """
    device = _device(model)
    logit_bytes = LOGIT_BYTES if device.type == "cpu" else LOGIT_BYTES_ACCELERATOR
    for batch in windows.batches(vocabulary_of(model), logit_bytes):
        batch = batch.to(device)
        with _inputs_of_head(model) as inputs:
            logits = model(input_ids=batch, use_cache=False).logits
        hidden = inputs[0] if inputs and inputs[0].shape[:2] == batch.shape else None
        before = slice(windows.given - 1, -1)
        for place, (ids, window_logits) in enumerate(zip(batch, logits, strict=True)):
            states = None if hidden is None else hidden[place, before]
            yield ids[windows.given :], window_logits[before], states
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


def _log_softmax_blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    rows = max(1, BLOCK_ELEMENTS // logits.shape[-1])
    start = 0
    # Split, not sliced: the gradient of each slice would be as large as all logits.
    for block in torch.split(logits, rows):
        yield slice(start, start + len(block)), torch.log_softmax(block.float(), -1)
        start += len(block)


def _negative_log_likelihood(logs: Tensor, targets: Tensor) -> Tensor:
    return -logs.gather(-1, targets[:, None]).squeeze(-1)


def _device(model: Any) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def check_scorable(model: Any, windows: Windows) -> None:
    """Make sure a model predicts each token from earlier ones and knows every token of the windows.

    Raises:
        ModelError: an encoder-decoder, a model without logits over its vocabulary, or one that
            looks ahead.
        DataError: a token beyond the model's vocabulary.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} cannot be scored: it is an encoder-decoder", wanted=SCORABLE)
    vocabulary = vocabulary_of(model)
    largest = max(int(windows.ids.max()), *windows.begin, 0)
    if largest >= vocabulary:
        got = f"token {largest}, vocabulary of {vocabulary}"
        raise DataError(
            "the text's tokens do not fit the model", got=got, wanted="the model's own tokenizer"
        )
    first, second = next(iter(windows))[:2].tolist()
    probe = torch.tensor(
        [[first, second], [first, (second + 1) % vocabulary]], device=_device(model)
    )
    with torch.inference_mode():
        try:
            logits = getattr(model(input_ids=probe, use_cache=False), "logits", None)
        except TypeError as error:
            raise ModelError(f"{kind} cannot be scored: {error}", wanted=SCORABLE) from error
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ModelError(
            f"{kind} cannot be scored: it gives no logits for each token", wanted=SCORABLE
        )
    one, other = logits[:, 0].float()
    if float((one - other).norm()) > 0.01 * float(one.norm()):
        raise ModelError(
            f"{kind} cannot be scored: its predictions look at later tokens", wanted=SCORABLE
        )
