"""Round a matrix to few bits by trellis-coded quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

from torch import Tensor

from autocompress.layers.trellis import TrellisMatrix
from autocompress.methods.base import MatrixProblem, Method, one_of, torch_dtype, whole_number
from autocompress.methods.listing import (
    GRAMS,
    GROUP_SIZE,
    WHOLE_ROW,
    Baseline,
    Choice,
    Key,
    check_group,
    group_label,
    named_group,
)
from autocompress.methods.shared_work import (
    columns_of,
    feedback_of,
    gram_label,
    left_by_feedback,
)
from autocompress.numerics.packing import pack
from autocompress.numerics.rounding import group_length, in_groups
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.trellis import TRELLIS_BITS, encode, find_scales, levels
from autocompress.records import LayerSpec

BASELINE_BITS = (4, 3, 2)


@dataclass(frozen=True)
class Trellis(Method):
    """Codes of few bits that are read together with the codes above them, and a scale per group.

    At 2 to 4 bits it halves the loss increase of rounding each element by itself; it is unpacked
    one layer at a time, so it saves memory and no time.

    Attributes:
        bits: bits of a code: 4, 3, 2 or 1.
        group_size: neighbours in a row that share a scale; 0 for the whole row.
        gram: how far to trust the calibrated Gram matrix of the inputs.
    """

    bits: int
    group_size: int = 0
    gram: GramKind = "full"
    name: ClassVar[str] = "trellis"

    def __post_init__(self) -> None:
        whole_number(self.name, "bits", self.bits, allowed=TRELLIS_BITS)
        whole_number(self.name, "group_size", self.group_size, least=0)
        one_of(self.name, "gram", self.gram, get_args(GramKind))

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """See ``Listable``."""
        return {
            "bits": Key("bits", Choice(TRELLIS_BITS)),
            "group_sizes": Key("group_size", GROUP_SIZE, (WHOLE_ROW,)),
            "grams": GRAMS,
        }

    @classmethod
    def baselines(cls, share: float) -> Iterator[Baseline]:  # noqa: ARG003 - it cuts no ranks
        """Whole rows at the bit widths that uniform codes have too."""
        for bits in BASELINE_BITS:
            yield Baseline.alike(f"{bits} bit trellis", cls(bits, WHOLE_ROW))

    def offered_to(self, spec: LayerSpec) -> Trellis:
        """See ``Listable``."""
        return replace(self, group_size=named_group(spec.in_features, self.group_size))

    def check(self, spec: LayerSpec) -> None:
        """The group size must divide the row.

        Raises:
            MethodError: it does not; the message names those that do.
        """
        check_group(self, spec, self.group_size)

    def skeleton(self, spec: LayerSpec) -> TrellisMatrix:
        """A trellis-coded layer without content."""
        return TrellisMatrix(
            *spec.shape,
            bits=self.bits,
            group_size=self.group_size,
            bias=spec.bias,
            dtype=torch_dtype(spec),
        )

    def expected_loss_increase(self, problem: MatrixProblem) -> float:
        """What error feedback leaves of noise ``4**-bits`` times as strong as the weights.

        That is how noise falls with bits in rate-distortion theory. Weights beyond the largest
        level lose what is beyond it.
        """
        scale = self._scales(problem)
        weight = in_groups(problem.weight32, scale.shape[1])
        spread = scale.float()[..., None]
        beyond = (weight.abs() - float(levels().max()) * spread).clamp_min_(0)
        squares = beyond.square_().add_(4.0**-self.bits * spread.square()).flatten(-2)
        return left_by_feedback(problem, self.gram, squares)

    def _scales(self, problem: MatrixProblem) -> Tensor:
        weight, columns = problem.weight32, columns_of(problem, self.gram)
        importance = columns if columns.ndim == 1 else columns.diagonal()
        groups = weight.shape[1] // group_length(weight.shape[1], self.group_size)
        return find_scales(weight, groups, importance)

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Code the columns one by one, each jointly, with error feedback between them."""
        scale = self._scales(problem)
        codes = encode(
            problem.weight32,
            scale,
            self.bits,
            rows=problem.metric.rows,
            feedback=feedback_of(problem, self.gram),
        )
        return {"table.codes": pack(codes, self.bits), "table.scales": scale}

    @property
    def form(self) -> str:
        """The bits of a code: ``3 bit trellis``."""
        return f"{self.bits} bit trellis"

    def __str__(self) -> str:
        group = group_label(self.group_size)
        return f"trellis {self.bits} bit {group}{gram_label(self.gram)}"
