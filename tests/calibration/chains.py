"""Models that are a chain of blocks, and some that look like one."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, beside=0.0):
        return x + self.linear(x + beside)


class Chain(nn.Module):
    """A language model of linear blocks; subclasses connect them in other ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 16)

    def body(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.body(self.embed(input_ids))))


class Between(Chain):
    def body(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Skipping(Chain):
    """The output also depends on the first block's."""

    def body(self, x):
        seen = [x := block(x) for block in self.blocks]
        return x + seen[0]


class EmbeddingsAtTheEnd(Chain):
    """The output also depends on the embeddings, as it does when the blocks are left out."""

    def body(self, x):
        return x + super().body(x)


class Twice(Chain):
    def body(self, x):
        for block in [*self.blocks, *self.blocks]:
            x = block(x)
        return x


class Backwards(Chain):
    def body(self, x):
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Unused(Chain):
    def body(self, x):
        return self.blocks[1](self.blocks[0](x))


class InPlace(Chain):
    """The hidden states are changed between the blocks without being another tensor."""

    def body(self, x):
        for block in self.blocks:
            x = block(x)
            x *= 2.0
        return x


class WritesIntoItsEmbeddings(Chain):
    def body(self, x):
        x *= 2.0
        return super().body(x)


class WritesIntoTheLast(Chain):
    """What comes after the last block changes its output in place."""

    def body(self, x):
        x = super().body(x)
        x *= 2.0
        return x


class GivenEmbeddings(Chain):
    """Each block is given the embeddings beside the hidden states, and they learn from it."""

    def body(self, x):
        first = x
        for block in self.blocks:
            x = block(x, first)
        return x


class LeftBehind(GivenEmbeddings):
    """Each block is given what the one before it left."""

    def body(self, x):
        left = [torch.zeros(8)]
        handle = self.blocks[0].linear.register_forward_hook(lambda _m, _a, out: left.append(out))
        for block in self.blocks:
            x = block(x, left[-1].detach())
        handle.remove()
        return x


class Attention(Block):
    def forward(self, x, bias=None):
        bias = self.linear(torch.ones(8)) if bias is None else bias
        return super().forward(x, bias), bias


class FirstDecides(Chain):
    """The first block makes what all blocks use, and returns it beside the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(3))

    def body(self, x):
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return x


class AttentionShown(FirstDecides):
    """Blocks return more than hidden states, and nobody uses it."""

    def body(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x


class Borrower(nn.Module):
    def __init__(self, lent) -> None:
        super().__init__()
        self.own, self._lent = nn.Linear(8, 8), (lent,)

    def forward(self, x):
        return self.own(self._lent[0](x))


class Borrowing(Chain):
    """All blocks use one matrix that belongs to none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Borrower(self.shared) for _ in range(3))


class OneBlock(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)


class NoList(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*self.blocks)
