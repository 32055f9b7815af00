from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.driver.proposing.aiming import Sighting, aim, approach, bracket
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd

LEAST, MOST = 1e5, 1e7


def sighting(size: float, used: float) -> Sighting:
    return Sighting(int(size), used, Plan.of({"layer": Svd(rank=int(size))}))


def test_a_plan_that_another_beats_says_nothing():
    seen = [sighting(10, 5), sighting(15, 9), sighting(20, 0.5), sighting(30, 2)]
    below, above = bracket(seen)
    assert (below, above) == (seen[0], seen[2])


@pytest.mark.parametrize("power", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("limit_at", [1.2e5, 9e5, 8e6])
def test_the_limit_is_found_in_few_steps(power, limit_at):
    seen = approach(
        lambda size: sighting(size, (limit_at / size) ** power),
        LEAST,
        MOST,
        steps=12,
        tolerance=1.02,
    )
    below, above = bracket(seen)
    assert below.used > 1 >= above.used
    assert above.bytes <= 1.02 * below.bytes


def test_what_cannot_be_kept_ends_at_the_most_bytes_and_what_always_is_at_the_least():
    never = approach(lambda s: sighting(s, 50.0), LEAST, MOST, steps=20, tolerance=1.02)
    assert never[-1].bytes == MOST
    always = approach(lambda s: sighting(s, -0.1), LEAST, MOST, steps=20, tolerance=1.02)
    assert always[-1].bytes == LEAST


@given(
    st.lists(st.tuples(st.floats(LEAST, MOST), st.floats(-1, 1e9)), max_size=8),
)
def test_an_aim_is_within_its_bounds_and_between_what_misses_and_what_keeps(points):
    seen = [sighting(size, used) for size, used in points]
    at = aim(seen, LEAST, MOST)
    assert LEAST <= at <= MOST
    below, above = bracket(seen)
    if below is not None and above is not None:
        assert below.bytes <= at <= above.bytes
