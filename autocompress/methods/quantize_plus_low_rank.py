"""Round a matrix to few bits and correct it by two thin factors."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, get_args

from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.corrected import CorrectedMatrix
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.layers.quantized import QuantizedMatrix
from autocompress.methods.base import MatrixProblem, Method, one_of, torch_dtype, whole_number
from autocompress.methods.listing import (
    GRAMS,
    GROUP_SIZE,
    SYMMETRIC,
    Choice,
    Key,
    Listed,
    Ranks,
    named_group,
    rank_keys,
)
from autocompress.methods.quantize import Quantize
from autocompress.methods.shared_work import (
    columns_of,
    feedback_of,
    round_grid,
    whitening_of,
)
from autocompress.methods.svd import Svd
from autocompress.numerics.corrector import fit_codes_and_factors, fit_factors
from autocompress.numerics.factor_rounding import factor_groups
from autocompress.numerics.packing import PACKED_BITS
from autocompress.numerics.rounding import pack_grid
from autocompress.numerics.shrinkage import GramKind
from autocompress.records import LayerSpec

CORRECTOR_BITS = (8, 4)


@dataclass(frozen=True)
class QuantizePlusLowRank(Method):
    """Codes of few bits, and packed factors of a small rank that correct them.

    Attributes:
        bits: bits of a code: 8, 4, 3 or 2.
        group_size: neighbours in a row that share a scale; 0 for the whole row.
        rank: of the corrector.
        factor_bits: 8 or 4, of the corrector's factors.
        symmetric: whether the codes do without zero points.
        gram: how far to trust the calibrated Gram matrices.
    """

    bits: int
    group_size: int
    rank: int
    factor_bits: int = 8
    symmetric: bool = False
    gram: GramKind = "full"
    name: ClassVar[str] = "quantize_plus_low_rank"
    factorised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number(self.name, "bits", self.bits, allowed=PACKED_BITS)
        whole_number(self.name, "group_size", self.group_size, least=0)
        whole_number(self.name, "rank", self.rank, least=1)
        whole_number(self.name, "factor_bits", self.factor_bits, allowed=CORRECTOR_BITS)
        if not isinstance(self.symmetric, bool):
            raise MethodError(
                f"method {self.name}, symmetric", got=repr(self.symmetric), wanted="true or false"
            )
        one_of(self.name, "gram", self.gram, get_args(GramKind))

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """See ``Listable``."""
        return {
            "bits": Key("bits", Choice(PACKED_BITS)),
            "group_sizes": Key("group_size", GROUP_SIZE),
            **rank_keys(),
            "factor_bits": Key("factor_bits", Choice(CORRECTOR_BITS), (8,)),
            "symmetric": SYMMETRIC,
            "grams": GRAMS,
        }

    @classmethod
    def check_listed(cls, listed: Listed, given: Collection[str]) -> None:  # noqa: ARG003
        """See ``Listable``."""
        Ranks.check(listed)

    @classmethod
    def candidates(cls, listed: Listed, spec: LayerSpec) -> Iterator[QuantizePlusLowRank]:
        """See ``Listable``; shares of ranks are of ``min(out, in)``."""
        ranks = tuple(Ranks.of(listed).within((min(spec.shape),)))
        for bits, size, (rank,), factor_bits, symmetric, gram in itertools.product(
            listed["bits"],
            listed["group_sizes"],
            ranks,
            *(listed[key] for key in ("factor_bits", "symmetric", "grams")),
        ):
            group = named_group(spec.in_features, size)
            yield cls(bits, group, rank, factor_bits, symmetric, gram)

    @classmethod
    def notices(cls, listed: Listed, spec: LayerSpec) -> Iterator[str]:
        """Yield which whole ranks of the corrector are above the smaller side."""
        yield from Ranks.of(listed).notices(cls.name, min(spec.shape))

    @property
    def codes(self) -> Quantize:
        """The rounded part."""
        return Quantize(self.bits, self.group_size, self.symmetric, self.gram)

    def parameters(self, spec: LayerSpec) -> int:
        """Those of the matrix and of the corrector."""
        return spec.parameters + self.rank * (spec.out_features + spec.in_features)

    def check(self, spec: LayerSpec) -> None:
        """The group size must divide the row, and the rank not exceed the smaller side.

        Raises:
            MethodError: one does not hold.
        """
        self.codes.check(spec)
        if self.rank > min(spec.shape):
            raise MethodError(
                f"layer {spec}, {self}: rank", got=self.rank, wanted=f"at most {min(spec.shape)}"
            )

    def fitting(self, spec: LayerSpec) -> QuantizePlusLowRank:
        """The same with a rank of the corrector that a matrix can have."""
        return replace(self, rank=min(self.rank, *spec.shape))

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The corrector's."""
        return (self.rank,)

    def with_ranks(self, ranks: Sequence[int]) -> QuantizePlusLowRank:
        """See ``Method``."""
        return replace(self, rank=ranks[0])

    def skeleton(self, spec: LayerSpec) -> CorrectedMatrix:
        """A corrected layer without content."""
        dtype = torch_dtype(spec)
        codes = QuantizedMatrix(
            *spec.shape,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            bias=False,
            dtype=dtype,
        )
        corrector = LowRankMatrix(
            *spec.shape,
            rank=self.rank,
            bits=self.factor_bits,
            groups=factor_groups(spec.shape, self.factor_bits),
            bias=False,
            dtype=dtype,
        )
        return CorrectedMatrix(
            *spec.shape, codes=codes, corrector=corrector, bias=spec.bias, dtype=dtype
        )

    def expected_loss_increase(self, problem: MatrixProblem) -> float:
        """That of the codes alone; what correctors take away of it is the factor."""
        return self.codes.expected_loss_increase(problem)

    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Alternate between codes and factors, each fitted to what the other leaves."""
        codes, (left, right) = fit_codes_and_factors(
            problem.weight32,
            partial(
                round_grid,
                problem,
                gram=self.gram,
                bits=self.bits,
                group_size=self.group_size,
                symmetric=self.symmetric,
            ),
            partial(
                fit_factors,
                rank=self.rank,
                whitening=whitening_of(problem, self.gram),
                columns=columns_of(problem, self.gram),
                feedback=feedback_of(problem, self.gram),
                bits=self.factor_bits,
                groups=factor_groups(problem.spec.shape, self.factor_bits),
            ),
        )
        parts = {
            "codes.table": codes,
            "corrector.left.packed": left,
            "corrector.right.packed": right,
        }
        return {
            f"{part}.{name}": tensor
            for part, rounded in parts.items()
            for name, tensor in pack_grid(*rounded).items()
        }

    def factors_anew(
        self,
        known: CompressedMatrix,  # noqa: ARG002 - an SVD needs no start
        problem: MatrixProblem,
    ) -> CompressedMatrix:
        """See ``Method``: a corrector."""
        spec = replace(problem.spec, bias=False)
        plain = MatrixProblem(spec, problem.weight, problem.metric)
        return Svd(self.rank, bits=self.factor_bits, gram=self.gram).build(plain)

    @property
    def form(self) -> str:
        """The bits of a code, and that it is corrected: ``2 bit + low rank``."""
        return f"{self.bits} bit + low rank"

    def __str__(self) -> str:
        return f"{self.codes} + r{self.rank} int{self.factor_bits}"
