from __future__ import annotations

import pytest

from autocompress.methods.cp import Cp
from autocompress.methods.folding import Modes
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.space.family import Family
from autocompress.space.space import Space
from tests.methods.matrices import spec_of

SPEC = spec_of(704, 256)
PRIME = spec_of(4099, 256)


def test_balanced_and_skewed_splits_are_options_of_their_own() -> None:
    family = Family.of(TensorTrain, ranks=(16,), orders=(2,), splits=("balanced", "skewed"))
    balanced, skewed = family.candidates(SPEC)
    assert isinstance(balanced, TensorTrain)
    assert isinstance(skewed, TensorTrain)
    assert (balanced.out_modes, balanced.in_modes) == ((22, 32), (16, 16))
    assert (skewed.out_modes, skewed.in_modes) == ((352, 2), (2, 128))


@pytest.mark.parametrize("method", [TensorTrain, Tucker, Cp])
@pytest.mark.parametrize("spec", [SPEC, PRIME, spec_of(3, 5)], ids=str)
def test_every_candidate_fits_its_matrix(method, spec) -> None:
    offered = Family.of(
        method,
        ranks=(10_000,),
        rank_fractions=(0.1, 1.0),
        orders=(2, 3, 4),
        splits=("balanced", "skewed"),
        bits=(0, 8),
    )
    candidates = list(offered.candidates(spec))
    assert len(candidates) == 36
    for candidate in candidates:
        candidate.check(spec)


def test_cp_fractions_are_of_the_rank_that_takes_as_many_numbers_as_the_matrix() -> None:
    half, whole = Family.of(Cp, rank_fractions=(0.5, 1.0), orders=(2,)).candidates(SPEC)
    assert isinstance(half, Cp)
    assert isinstance(whole, Cp)
    modes = (22, 32, 16, 16)
    assert 0.9 < whole.rank * sum(modes) / SPEC.parameters <= 1
    assert half.rank == pytest.approx(whole.rank / 2, rel=0.02)


def test_sides_may_have_different_numbers_of_modes() -> None:
    modes = (Modes((704,), (16, 16)),)
    for family in (
        Family.of(TensorTrain, ranks=(8,), modes=modes),
        Family.of(Tucker, rank_fractions=(0.25,), modes=modes),
        Family.of(Cp, ranks=(64,), modes=modes),
    ):
        options = Space("unequal", (family,), keep=False).options(SPEC)
        assert len(options) == 1
        assert not list(family.notices(SPEC))
