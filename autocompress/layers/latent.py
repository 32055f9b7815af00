"""What stands behind packed codes while they are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from autocompress.numerics.packing import pack
from autocompress.numerics.rounding import Grid, in_groups
from autocompress.numerics.trellis import dequantize, encode

GRID_ERROR = 12**-0.5  # of weights anywhere between two codes
TRELLIS_ERRORS = {1: 0.55, 2: 0.27, 3: 0.135, 4: 0.07}  # seen on normal numbers
EDGE = 0.49  # of a step beyond the last code: a latent number further out could not come back soon


class Latent(nn.Module):
    """Real weights that are rounded to codes whenever they are used, and a scale for each group.

    ``values()`` is what the stored form reads back, bit for bit; its gradient is as if nothing were
    rounded (straight-through; Bengio, Léonard and Courville 2013, arXiv 1308.3432).
    Latent weights are in units of the scale, so that one step of training means the same for large
    and small weights, and the scale is learnt by its logarithm (a deviation from learned step
    sizes, Esser et al. 2019, arXiv 1902.08153, where both share one unit).

    Args:
        units: what the codes stand for in units of the scale, ``[rows, columns]`` in fp32.
        scale: fp16 or bf16 ``[rows, groups]``.

    Attributes:
        units: parameter, ``[rows, columns]``.
        error: root mean square of the rounding of units, about: how far they have to go before a
            code changes.
        growth: parameter, logarithm of a scale over what it was at first, ``[rows, groups]``.
    """

    first_scale: Tensor

    def __init__(self, units: Tensor, scale: Tensor, error: float) -> None:
        super().__init__()
        self.error, self.stored_type = error, scale.dtype
        self.units = nn.Parameter(units)
        self.growth = nn.Parameter(torch.zeros_like(scale, dtype=torch.float32))
        self.register_buffer("first_scale", scale.detach().float())

    def rounded(self) -> Tensor:
        """The units that the codes now stand for, ``[rows, columns]`` without a gradient."""
        raise NotImplementedError

    def codes(self) -> Tensor:
        """The codes, packed as they are stored: uint8 ``[rows, bytes]``."""
        raise NotImplementedError

    def scales(self) -> Tensor:
        """Scales as stored, ``[rows, groups]`` without a gradient."""
        return self._scale().detach().to(self.stored_type)

    def values(self) -> Tensor:
        """The matrix ``[rows, columns]`` in fp32."""
        values: Tensor = _Scaled.apply(  # type: ignore[no-untyped-call]
            self.units, self.rounded(), self._scale()
        )
        return values

    def after_step_(self, step: int) -> None:
        """Keep the latent weights in reach of the codes, after a step of the optimiser."""

    def _scale(self) -> Tensor:
        scale = self.first_scale * self.growth.exp()
        return scale + (scale.to(self.stored_type).float() - scale).detach()


class GridLatent(Latent):
    """Behind codes that stand for themselves, on a grid.

    Args:
        codes: uint8 ``[rows, columns]``.
        grid: their scales and zero points; zero points stay as they are.
    """

    def __init__(self, codes: Tensor, grid: Grid) -> None:
        self.bits = grid.bits
        centre = grid.centre
        centre = centre[..., None] if isinstance(centre, Tensor) else torch.tensor(centre)
        units = in_groups(codes, grid.scale.shape[1]).float() - centre
        super().__init__(units.flatten(-2), grid.scale, GRID_ERROR)
        self.register_buffer("centre", centre.to(codes.device))

    centre: Tensor

    def rounded(self) -> Tensor:
        """See ``Latent``."""
        return (self._codes() - self.centre).flatten(-2)

    def codes(self) -> Tensor:
        """See ``Latent``."""
        return pack(self._codes().to(torch.uint8).flatten(-2), self.bits)

    def after_step_(self, step: int) -> None:  # noqa: ARG002
        """See ``Latent``."""
        with torch.no_grad():
            grouped = in_groups(self.units, self.first_scale.shape[1])
            low, high = -self.centre - EDGE, 2**self.bits - 1 - self.centre + EDGE
            self.units.copy_(torch.clamp(grouped, low, high).flatten(-2))

    def _codes(self) -> Tensor:
        grouped = in_groups(self.units.detach(), self.first_scale.shape[1])
        return (grouped + self.centre).round_().clamp_(0, 2**self.bits - 1)


class TrellisLatent(Latent):
    """Behind trellis codes, which are chosen jointly: anew every few steps.

    Args:
        codes: uint8 ``[rows, columns]``.
        scale: fp16 or bf16 ``[rows, groups]``.
        bits: of a code.
        every: steps after which the codes are chosen anew, the nearest ones to the latent weights.
    """

    chosen: Tensor
    reached: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, bits: int, *, every: int = 5) -> None:
        units = dequantize(codes, torch.ones_like(scale), bits)
        super().__init__(units, scale, TRELLIS_ERRORS[bits])
        self.bits, self.every = bits, every
        self.register_buffer("chosen", codes.clone())
        self.register_buffer("reached", units.clone())

    def rounded(self) -> Tensor:
        """See ``Latent``."""
        return self.reached

    def codes(self) -> Tensor:
        """See ``Latent``."""
        return pack(self.chosen, self.bits)

    def after_step_(self, step: int) -> None:
        """See ``Latent``."""
        if step % self.every or not self.units.requires_grad:
            return
        scale = self.scales()
        ones = torch.ones(len(scale), device=scale.device)
        aims = in_groups(self.units.detach(), scale.shape[1]) * scale.float()[..., None]
        self.chosen = encode(aims.flatten(-2), scale, self.bits, rows=ones)
        self.reached = dequantize(self.chosen, torch.ones_like(scale), self.bits)


class _Scaled(Function):
    """``rounded * scale`` by groups, with the gradient of ``units * scale`` for the units."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
        del units
        ctx.save_for_backward(rounded, scale)
        return (in_groups(rounded, scale.shape[1]) * scale[..., None]).flatten(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        rounded, scale = ctx.saved_tensors
        grouped = in_groups(gradient, scale.shape[1])
        for_scale = (grouped * in_groups(rounded, scale.shape[1])).sum(-1)
        return (grouped * scale[..., None]).flatten(-2), None, for_scale
