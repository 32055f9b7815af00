from __future__ import annotations

import pytest
import torch

from autocompress.numerics.tensors.cp import CpForm, cp_rank_limit, decompose_cp, khatri_rao
from tests.methods.matrices import matrix


def factors_of(rank: int, *modes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in modes]


def test_khatri_rao_is_the_kronecker_product_of_each_column() -> None:
    a, b, c = factors_of(3, 4, 2, 5)
    product = khatri_rao([a, b, c])
    for r in range(3):
        torch.testing.assert_close(product[:, r], torch.kron(torch.kron(a[:, r], b[:, r]), c[:, r]))


def test_the_matrix_is_the_sum_of_outer_products() -> None:
    factors = factors_of(3, 4, 2, 5)
    tensor = torch.einsum("ar,br,cr->abc", *factors)
    form = CpForm((3,), (4, 2), (5,))
    torch.testing.assert_close(form.multiply_out(factors), tensor.reshape(8, 5))


@pytest.mark.parametrize(("out_modes", "in_modes"), [((6, 5), (7, 4)), ((3, 4, 2), (5, 5))])
def test_a_matrix_of_known_rank_is_found(
    out_modes: tuple[int, ...], in_modes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.numerics.tensors.cp.SWEEPS", 60)
    monkeypatch.setattr("autocompress.numerics.tensors.cp.RIDGE", 1e-12)
    form = CpForm((2,), out_modes, in_modes)
    exact = form.multiply_out(factors_of(2, *out_modes, *in_modes))
    found = form.multiply_out(decompose_cp(exact, 2, out_modes, in_modes))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6 * float(exact.abs().max()))


def test_the_full_rank_is_all_but_exact_without_being_refined() -> None:
    weight = matrix(12, 8).double()
    form = CpForm((cp_rank_limit((3, 4, 2, 4)),), (3, 4), (2, 4))
    dense = form.multiply_out(form.decompose(weight))
    assert float((dense - weight).norm()) < 0.02 * float(weight.norm())


def test_vectors_of_a_component_share_one_norm_and_zero_stays_zero() -> None:
    factors = decompose_cp(matrix(12, 8), 5, (3, 4), (2, 4))
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    for factor in decompose_cp(torch.zeros(12, 8), 5, (3, 4), (2, 4)):
        assert torch.isfinite(factor).all()
