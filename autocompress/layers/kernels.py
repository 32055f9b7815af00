"""Products of few inputs with integer codes on a CPU, by kernels that read the codes themselves.

For bf16 they are the ones that PyTorch ships. Each reads a layout of its own, made from the stored
codes at the first product. In fp32 those run without vector instructions, and a loop compiled by
numba reads the codes as they are stored. For many inputs unpacking once costs less
(``experiments/layer_speed.py`` measures both).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.numerics.packed_loops import multiply_packed

# The bf16 int8 kernel reads past the end of rows that no multiple of 16 fills (seen: NaN and
# crashes), and the shortest group of the int4 kernel is 32.
COLUMNS = 32
INT4_ROWS = 16  # outputs of the int4 kernel come by so many
INT4_GROUPS = (256, 128, 64, 32)
# Most inputs at a time: with more, unpacking and a dense product are faster. Measured on one
# AVX-512 core, 2048 to 8192, by experiments/layer_speed.py --sweep.
INT8_BATCH, INT4_BATCH = 16, 32
# The fp32 loop runs on one thread and takes a tenth of the time of unpacking at batch 1.
LOOP_BATCH, LOOP_THREADS = 4, 4
_CAPABILITIES = ("AVX2", "AVX512")  # for which the kernels have vector instructions in bf16
_CONVERTED_ROWS = 1024  # laid out at a time, since the conversion wants 4 bytes an element


@dataclass(frozen=True)
class Kernel:
    """A matrix ``W [out, in]`` in the layout of a kernel, used for bf16 ``x [..., in]``.

    Attributes:
        shape: of W.
        batch: most inputs at a time that it is worth using for.
        codes: the layout.
        scales: bf16, in the shape that the kernel wants.
    """

    shape: tuple[int, int]
    batch: int
    codes: Tensor
    scales: Tensor

    @property
    def memory_bytes(self) -> int:
        """Size of the layout."""
        return sum(t.nbytes for t in vars(self).values() if isinstance(t, Tensor))

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, bf16 ``[..., out]``."""
        flat = x.reshape(-1, self.shape[1])
        if self.shape[1] % COLUMNS:
            flat = pad(flat, (0, -self.shape[1] % COLUMNS))
        return self._multiply(flat.contiguous())[:, : self.shape[0]].reshape(*x.shape[:-1], -1)

    def _multiply(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Int8Kernel(Kernel):
    """``W = scales * codes + shift``: codes int8 ``[out, in]``, one scale and shift for each row.

    Attributes:
        shift: bf16 ``[out]``, or ``None`` when codes stand symmetrically around zero.
    """

    shift: Tensor | None

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, centre: Tensor) -> Int8Kernel:
        """Lay out ``scale * (codes - centre)``: uint8 ``[out, in]``, fp32 ``[out, 1]`` twice."""
        shift = (scale * (128 - centre))[:, 0]
        signed = (codes ^ 128).view(torch.int8)
        return cls(
            (codes.shape[0], codes.shape[1]),
            INT8_BATCH,
            pad(signed, (0, -codes.shape[1] % COLUMNS)).contiguous(),
            scale[:, 0].bfloat16(),
            shift.bfloat16() if bool(shift.any()) else None,
        )

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scales)
        return y if self.shift is None else y.addcmul_(x.sum(-1, keepdim=True), self.shift)


@dataclass(frozen=True)
class Int4Kernel(Kernel):
    """``W = scale * (codes - 8) + offset``, with groups of columns.

    Attributes:
        group_size: columns that share a scale and an offset, stored as ``scales [in / group_size,
            out, 2]``.
        halves: whether codes of 8 bits are split into high and low halves, side by side.
    """

    group_size: int
    halves: bool

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, centre: Tensor, *, halves: bool) -> Int4Kernel | None:
        """Lay out ``scale * (codes - centre)``: uint8 ``[out, in]``, fp32 ``[out, groups]`` twice.

        Returns:
            ``None`` when no group of the kernel divides those of the matrix.
        """
        rows, columns = codes.shape
        groups = scale.shape[1]
        length = columns // groups if groups > 1 else columns + -columns % COLUMNS
        group = next((size for size in INT4_GROUPS if length % size == 0), None)
        if group is None:
            return None
        missing = -rows % INT4_ROWS
        codes = pad(codes, (0, groups * length - columns, 0, missing))
        pairs = torch.stack([scale, scale * (8 - centre)], -1)
        if halves:  # 16 a + b - c  =  16 (a - 8) + (136 - c)  +  (b - 8)
            codes = torch.cat([codes >> 4, codes & 15], 1)
            high = torch.stack([16 * scale, scale * (136 - centre)], -1)
            pairs = torch.cat([high, torch.stack([scale, torch.zeros_like(scale)], -1)], 1)
        pairs = pad(pairs.repeat_interleave(length // group, 1), (0, 0, 0, 0, 0, missing))
        batch = INT4_BATCH // 2 if halves else INT4_BATCH
        scales = pairs.transpose(0, 1).bfloat16().contiguous()
        return cls((rows, columns), batch, _int4_layout(codes), scales, group, halves)

    def _multiply(self, x: Tensor) -> Tensor:
        if self.halves:
            x = torch.cat([x, x], 1)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.codes, self.group_size, self.scales
        )
        return y


@dataclass(frozen=True)
class LoopKernel(Kernel):
    """``W = scales * (codes - centres)`` for fp32, its codes as they are stored.

    Attributes:
        codes: uint8 ``[out, bytes]``, shared with what is stored.
        scales: fp32 ``[out, groups]``.
        centres: fp32 ``[out, groups]``.
        bits: of a code.
    """

    centres: Tensor
    bits: int

    @classmethod
    def of(
        cls, packed: Tensor, columns: int, scale: Tensor, centre: Tensor | float, bits: int
    ) -> Self:
        """Use packed codes ``[out, bytes]``; scale and centre: fp32 ``[out, groups]``."""
        scale = scale.detach().float().contiguous()
        centres = torch.as_tensor(centre, dtype=torch.float32).expand_as(scale).contiguous()
        return cls((len(packed), columns), LOOP_BATCH, packed, scale, centres, bits)

    @property
    def memory_bytes(self) -> int:
        """Size of scales and centres in fp32; the codes are where they were."""
        return self.scales.nbytes + self.centres.nbytes

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ W.T``, fp32 ``[..., out]``."""
        flat = x.detach().reshape(-1, self.shape[1]).contiguous()
        y = torch.empty(*x.shape[:-1], self.shape[0])
        codes, scales, centres = self._arrays
        multiply_packed(
            codes, self.bits, scales, centres, flat.numpy(), y.view(-1, self.shape[0]).numpy()
        )
        return y

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        return self.codes.numpy(), self.scales.numpy(), self.centres.numpy()


def _int4_layout(codes: Tensor) -> Tensor:
    """Codes uint8 ``[out, in]`` below 16 in the int4 kernel's order, uint8 ``[out, in / 2]``."""
    parts = torch.split(codes, _CONVERTED_ROWS)
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    return torch.cat([convert(part.int(), 1) for part in parts])  # the 1 is not looked at on a CPU


def kernel_of(codes: Tensor, scale: Tensor, centre: Tensor | float, bits: int) -> Kernel | None:
    """Lay out ``W = scale * (codes - centre)`` for the kernel that fits it, if one does.

    Whole rows of 8 bits go to the int8 kernel, groups of 8 bits in two halves to the int4 kernel,
    fewer bits to the int4 kernel as they are.

    Args:
        codes: uint8 ``[out, in]``.
        scale: ``[out, groups]``.
        centre: the code of zero, ``[out, groups]``, or one number for all.
        bits: of a code.
    """
    scale = scale.detach().float()
    centre = torch.as_tensor(centre, device=scale.device).expand_as(scale)
    if bits == 8 and scale.shape[1] == 1:
        return Int8Kernel.of(codes, scale, centre)
    raised = 0 if bits == 8 else 8 - 2 ** (bits - 1)  # few codes, too, lie around the kernel's 8
    return Int4Kernel.of(codes + raised, scale, centre + raised, halves=bits == 8)


def kernels_take(x: Tensor) -> bool:
    """Whether the kernels are made for so many inputs of this type, on this processor."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and 0 < x.numel() <= x.shape[-1] * INT4_BATCH
        and torch.backends.cpu.get_cpu_capability() in _CAPABILITIES
    )


def loop_takes(x: Tensor) -> bool:
    """Whether the fp32 loop is made for so many inputs of this type, with so many threads."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and 0 < x.numel() <= x.shape[-1] * LOOP_BATCH
        and torch.get_num_threads() <= LOOP_THREADS
    )


class KernelCache:
    """Keeps a layout until the tensors that it was made from change.

    It is not copied or pickled with the layer: the layout depends on the processor.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._sources: tuple[Tensor, ...] = ()  # held, so that no other tensor gets their identity
        self.kernel: Kernel | None = None

    def get(self, sources: tuple[Tensor, ...], make: Callable[[], Kernel | None]) -> Kernel | None:
        """The layout of ``sources``, made by ``make`` unless it is there."""
        key = tuple((id(t), t.data_ptr(), _version(t)) for t in sources)
        if key != self._key:
            self.kernel = make()
            self._sources, self._key = sources, key
        return self.kernel

    def __reduce__(self) -> tuple[type[KernelCache], tuple[()]]:
        return KernelCache, ()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
