"""Quality of causal language models: KL divergence of their predictions, and perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import DataError, ModelError
from autocompress.evaluation.divergence import ExactRows, TopRows
from autocompress.evaluation.encoding import vocabulary_of
from autocompress.evaluation.objective import Objective, Rows
from autocompress.evaluation.plausibility import absurd_perplexity
from autocompress.evaluation.windows import Windows
from autocompress.records import PERPLEXITY, Gauge

EXACT_VOCABULARY = 8192  # up to this size every probability is kept
SCORABLE = (
    "a causal language model, such as GPT-2, GPT-NeoX, OPT, Llama, Mistral, Qwen, Gemma or Phi"
)


@dataclass(frozen=True)
class CausalLanguage(Objective):
    """Every token of a window is predicted but those given; nats per token.

    Rows of the dense model take 2 bytes an element, or 3 to 4 kB a token with ``TOP_K``.

    Attributes:
        exact_vocabulary: the largest vocabulary for which every probability is kept.
    """

    exact_vocabulary: int = EXACT_VOCABULARY
    name: ClassVar[str] = "causal language"
    gauge: ClassVar[Gauge] = PERPLEXITY

    def serves(self, model: Any) -> bool:
        """Every model that no other objective serves."""
        del model
        return True

    def check_scorable(self, model: Any, windows: Windows) -> None:
        """Make sure a model predicts each token from earlier ones and knows every token.

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
                "the text's tokens do not fit the model",
                got=got,
                wanted="the model's own tokenizer",
            )
        first, second = next(iter(windows))[:2].tolist()
        probe = torch.tensor([[first, second], [first, (second + 1) % vocabulary]])
        device = next((each.device for each in model.parameters()), probe.device)
        with torch.inference_mode():
            try:
                logits = self.output_of(model(input_ids=probe.to(device), use_cache=False))
            except TypeError as error:
                raise ModelError(f"{kind} cannot be scored: {error}", wanted=SCORABLE) from error
        if logits is None or logits.ndim != 3:
            raise ModelError(
                f"{kind} cannot be scored: it gives no logits for each token", wanted=SCORABLE
            )
        one, other = logits[:, 0].float()
        if float((one - other).norm()) > 0.01 * float(one.norm()):
            raise ModelError(
                f"{kind} cannot be scored: its predictions look at later tokens", wanted=SCORABLE
            )

    def width(self, model: Any) -> int:
        """The vocabulary."""
        return vocabulary_of(model)

    def output_of(self, returned: Any) -> Tensor | None:
        """Logits ``[b, length, vocabulary]``."""
        logits = getattr(returned, "logits", None)
        return logits if isinstance(logits, Tensor) else None

    def compared(self, length: int, given: int) -> range:
        """What each token but the last predicts, from the last given one on."""
        return range(given - 1, length - 1)

    def prepared(self, outputs: Tensor) -> Tensor:
        """Logarithmic probabilities."""
        return torch.log_softmax(outputs.float(), -1)

    def losses(self, outputs: Tensor, ids: Tensor) -> Tensor:
        """Negative log-likelihood of each token ``ids [m]``."""
        return -outputs.gather(-1, ids[:, None]).squeeze(-1)

    def implausible(self, model: Any, loss: float, text: str) -> str | None:
        """See ``absurd_perplexity``."""
        return absurd_perplexity(loss, vocabulary_of(model), text)

    def rows(self, count: int, width: int, device: torch.device, *, training: bool = False) -> Rows:
        """All probabilities of a small vocabulary, else the largest; these also for training."""
        if width <= self.exact_vocabulary and not training:
            return ExactRows(count, width, device)
        return TopRows(count, width, device, exact=not training)

    def restored(self, tensors: Mapping[str, Tensor], *, training: bool = False) -> Rows:
        """The rows that ``Rows.tensors`` gave."""
        if "codes" in tensors:
            return ExactRows.restored(tensors)
        return TopRows.restored(tensors, exact=not training)

    def drawn_loss(self, outputs: Tensor, draws: torch.Generator) -> Tensor:
        """Negative log-likelihood of labels drawn from the predictions themselves.

        The Gram matrix of its gradients is that of the Fisher information, whose quadratic form
        predicts the KL divergence (Martens and Grosse 2015, section 2; the labels of the text would
        give the empirical Fisher instead).
        """
        with torch.no_grad():  # a label is where the cumulative probabilities pass a number
            sums = outputs.softmax(-1).cumsum(-1)
            at = torch.rand(len(outputs), 1, generator=draws).to(sums) * sums[:, -1:]
            drawn = torch.searchsorted(sums, at)[:, 0].clamp_max_(outputs.shape[-1] - 1)
        return nn.functional.cross_entropy(outputs, drawn, reduction="sum")
