"""Labels as the calibration draws them, found in another way."""

from __future__ import annotations

import torch


def drawn(logits, generator):
    """One label from each row ``[n, vocabulary]``: where a number falls among probabilities."""
    numbers = torch.rand(len(logits), 1, generator=generator)
    return (logits.detach().softmax(-1).cumsum(-1) < numbers).sum(-1)
