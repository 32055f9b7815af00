from __future__ import annotations

import torch

from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.shrinkage import shrink, shrinkage_intensity, with_grams
from tests.methods.matrices import gram


def sampled(true: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(samples, len(true), generator=generator).double()
    vectors = vectors @ torch.linalg.cholesky(true).T
    return vectors.T @ vectors / samples


def test_shrunk_grams_are_nearer_to_the_true_one() -> None:
    true = gram(24, 0, decay=0.3).double() + 0.1 * torch.eye(24)
    for samples in (8, 30, 120):
        errors = {"full": 0.0, "shrunk": 0.0, "diagonal": 0.0}
        for seed in range(20):
            found = sampled(true, samples, seed)
            forms = {"full": found, "shrunk": shrink(found, samples)}
            forms["diagonal"] = torch.diag(found.diagonal())
            for name, form in forms.items():
                errors[name] += float((form - true).square().sum())
        assert errors["shrunk"] < min(errors["full"], errors["diagonal"]) * 1.02


def test_intensity_falls_with_tokens_and_is_a_share() -> None:
    found = sampled(gram(16, 0).double() + 0.1 * torch.eye(16), 4000, 0)
    intensities = [shrinkage_intensity(found, samples) for samples in (1, 10, 100, 10_000)]
    assert intensities == sorted(intensities, reverse=True)
    assert intensities[0] == 1.0
    assert 0 < intensities[-1] < 0.01


def test_independent_inputs_are_shrunk_to_their_diagonal() -> None:
    assert shrinkage_intensity(torch.diag(torch.linspace(0.1, 2.0, 8)), 100) == 1.0
    assert shrinkage_intensity(torch.zeros(8, 8), 100) == 1.0


def test_intensity_does_not_depend_on_units() -> None:
    found, scale = gram(16, 0), torch.linspace(0.01, 10.0, 16)
    torch.testing.assert_close(
        shrinkage_intensity(found, 50), shrinkage_intensity(found * scale * scale[:, None], 50)
    )


def test_kinds_of_grams() -> None:
    known = Metric((Curvature(gram(8, 1), gram(12, 2), tokens=20),))
    unknown = Metric((Curvature(gram(8, 1), gram(12, 2)),))
    assert with_grams(known, "full") is known
    (diagonal,) = with_grams(known, "diagonal").terms
    assert torch.equal(diagonal.columns, gram(12, 2).diagonal())
    (shrunk,) = with_grams(known, "shrunk").terms
    torch.testing.assert_close(shrunk.rows.diagonal(), gram(8, 1).diagonal())
    assert float(shrunk.rows[0, 1].abs()) < float(gram(8, 1)[0, 1].abs())
    assert torch.equal(with_grams(unknown, "shrunk").terms[0].rows, gram(8, 1))
