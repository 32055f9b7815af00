"""Numbers behind codes read back as what is stored, and learn as if nothing were rounded."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from autocompress.layers.latent import EDGE, GridLatent, Latent, TrellisLatent
from autocompress.layers.packed import PackedCodes, PackedTable
from autocompress.layers.trellis import TrellisMatrix
from autocompress.numerics.packing import pack
from autocompress.numerics.rounding import find_grid, pack_grid
from autocompress.numerics.trellis import dequantize

ROWS, COLUMNS = 12, 32
GRIDS = [
    pytest.param(bits, group, symmetric, id=f"{bits}bit-g{group}-{symmetric}")
    for bits, group, symmetric in product((2, 3, 4, 8), (0, 8), (False, True))
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid_table(bits: int, group: int, symmetric: bool) -> PackedTable:
    table = PackedTable(ROWS, COLUMNS, bits=bits, group_size=group, symmetric=symmetric)
    weight = normal(ROWS, COLUMNS)
    grid = find_grid(weight, bits=bits, group_size=group, symmetric=symmetric)
    table.load_state_dict(pack_grid(grid, grid.round(weight)))
    return table.requires_grad_(False)


def trellis_matrix(bits: int, group: int = 0, rows: int = ROWS) -> TrellisMatrix:
    matrix = TrellisMatrix(
        rows, COLUMNS, bits=bits, group_size=group, bias=False, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 2**bits, (rows, COLUMNS), generator=generator, dtype=torch.uint8)
    scales = 0.1 + normal(*matrix.table.scales.shape, seed=2).abs().half()
    matrix.load_state_dict({"table.codes": pack(codes, bits), "table.scales": scales})
    return matrix.requires_grad_(False)


def stored_again(table: PackedTable, latent: Latent) -> PackedTable:
    """What a table reads that holds what the latent weights would store."""
    columns = table.shape[1]
    again = PackedTable(
        *table.shape,
        bits=table.bits,
        group_size=columns // table.scales.shape[1],
        symmetric=table.zeros is None,
    )
    again.load_state_dict(table.state_dict() | {"codes": latent.codes(), "scales": latent.scales()})
    return again


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
def test_values_are_those_of_the_codes(bits: int, group: int, symmetric: bool) -> None:
    table = grid_table(bits, group, symmetric)
    latent = table.new_latent()
    assert torch.equal(latent.codes(), table.codes)
    assert torch.equal(latent.scales(), table.scales)
    assert torch.equal(latent.values(), table.read(torch.float32))


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
def test_values_stay_those_of_the_codes_in_training(bits: int, group: int, symmetric: bool) -> None:
    table = grid_table(bits, group, symmetric)
    latent = table.new_latent()
    with torch.no_grad():
        latent.units += normal(ROWS, COLUMNS, seed=3)
        latent.growth += 0.1 * normal(*latent.growth.shape, seed=4)
    latent.after_step_(1)
    again = stored_again(table, latent)
    assert not torch.equal(latent.codes(), table.codes)
    assert torch.equal(latent.values(), again.read(torch.float32))
    ids = torch.tensor([3, 0, 3])
    table.latent = latent
    assert torch.equal(table.read_rows(ids, torch.float32), again.read_rows(ids, torch.float32))
    x = normal(5, COLUMNS, seed=5)
    assert_close(table.multiply(x), again.multiply(x))
    assert_close(table.combine(normal(5, ROWS)), again.combine(normal(5, ROWS)))


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_trellis_values_are_those_of_the_codes(bits: int, group: int) -> None:
    matrix = trellis_matrix(bits, group)
    latent = matrix.table.new_latent()
    assert torch.equal(latent.codes(), matrix.table.codes)
    assert torch.equal(latent.values(), matrix.to_dense())
    ids = torch.tensor([5, 11, 0])
    rows = matrix.rows(ids)
    matrix.table.latent = latent
    assert torch.equal(matrix.rows(ids), rows)


@pytest.mark.parametrize("form", ["grid", "trellis"])
def test_gradients_are_as_if_nothing_were_rounded(form: str) -> None:
    """Of ``(units * scale) . G`` by units, of ``(rounded * scale) . G`` by log scale."""
    latent = (
        grid_table(3, 8, False) if form == "grid" else trellis_matrix(2, 8).table
    ).new_latent()
    with torch.no_grad():
        latent.units += 0.3 * normal(ROWS, COLUMNS, seed=3)
        latent.growth += 0.1 * normal(*latent.growth.shape, seed=4)
    weights = normal(ROWS, COLUMNS, seed=6)
    (latent.values() * weights).sum().backward()
    scale = latent.first_scale * latent.growth.detach().exp()
    stored = scale.half().float()
    grouped = weights.reshape(ROWS, -1, 8)
    assert latent.units.grad is not None
    assert_close(latent.units.grad, (grouped * stored[..., None]).flatten(1))
    rounded = latent.rounded().reshape(ROWS, -1, 8)
    assert latent.growth.grad is not None
    assert_close(latent.growth.grad, (grouped * rounded).sum(-1) * scale)


def test_scales_are_learnt_in_fp32_and_used_as_stored() -> None:
    latent = grid_table(4, 8, True).new_latent()
    with torch.no_grad():
        latent.growth += 1e-5  # less than an fp16 number can tell apart
    assert torch.equal(latent.scales(), latent.first_scale.half())
    with torch.no_grad():
        latent.growth += 0.1
    scales = (latent.first_scale * latent.growth.exp()).half()
    assert torch.equal(latent.scales(), scales)
    wanted = latent.rounded().reshape(ROWS, -1, 8) * scales.float()[..., None]
    assert torch.equal(latent.values(), wanted.flatten(1).detach())


@pytest.mark.parametrize("symmetric", [False, True])
def test_units_stay_in_reach_of_the_last_codes(symmetric: bool) -> None:
    latent = grid_table(3, 8, symmetric).new_latent()
    assert isinstance(latent, GridLatent)
    with torch.no_grad():
        latent.units[: ROWS // 2] += 100
        latent.units[ROWS // 2 :] -= 100
    latent.after_step_(1)
    place = latent.units.reshape(ROWS, -1, 8) + latent.centre
    assert_close(place[: ROWS // 2], torch.full_like(place[: ROWS // 2], 7 + EDGE))
    assert_close(place[ROWS // 2 :], torch.full_like(place[ROWS // 2 :], -EDGE))
    rounded = latent.rounded().reshape(ROWS, -1, 8) + latent.centre
    assert set(rounded.unique().tolist()) == {0.0, 7.0}


def test_trellis_codes_are_chosen_anew_every_few_steps() -> None:
    matrix = trellis_matrix(2)
    latent = TrellisLatent(matrix.table.unpacked(), matrix.table.scales, 2, every=3)
    aim = latent.units.detach() + normal(ROWS, COLUMNS, seed=3)
    with torch.no_grad():
        latent.units.copy_(aim)
    before = latent.codes()
    for step in (1, 2):
        latent.after_step_(step)
        assert torch.equal(latent.codes(), before)
    far = (latent.rounded() - aim).square().sum()
    latent.after_step_(3)
    assert not torch.equal(latent.codes(), before)
    assert (latent.rounded() - aim).square().sum() < 0.5 * far
    matrix.load_state_dict({"table.codes": latent.codes(), "table.scales": latent.scales()})
    assert torch.equal(latent.values(), matrix.to_dense())


def test_trellis_codes_are_the_nearest_ones() -> None:
    """Brute force over all codes of a column."""
    rows, bits = 7, 1
    matrix = trellis_matrix(bits, rows=rows)
    matrix.table.scales.fill_(0.5)
    latent = matrix.table.new_latent()
    with torch.no_grad():
        latent.units.copy_(normal(rows, COLUMNS, seed=3))
    latent.after_step_(0)
    every = torch.tensor(list(product((0, 1), repeat=rows)), dtype=torch.uint8).T.contiguous()
    values = dequantize(every, torch.ones(rows, 1).half(), bits)
    errors = (values[:, None] - latent.units.detach()[:, :, None]).square().sum(0)
    reached = (latent.rounded() - latent.units.detach()).square().sum(0)
    assert_close(reached, errors.min(1).values)


def test_codes_that_are_not_trained_stay() -> None:
    latent = trellis_matrix(2).table.new_latent()
    latent.units.requires_grad_(False)
    codes = latent.codes()
    with torch.no_grad():
        latent.growth += 0.3 * normal(*latent.growth.shape)
    latent.after_step_(0)
    assert torch.equal(latent.codes(), codes)


def test_codes_that_say_nothing_of_their_training_are_not_trained_as_a_grid():
    with pytest.raises(NotImplementedError, match="how its codes are trained"):
        PackedCodes(2, 8, bits=4).new_latent()
