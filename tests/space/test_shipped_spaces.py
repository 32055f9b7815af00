"""The spaces of the package run over matrices of every shape: all is costed, some is fitted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.methods.keep import Keep
from autocompress.records import Role
from autocompress.space.space_file import load_space, space_names
from tests.methods.matrices import problem_of, spec_of

# In each pair the first is costed, as matrices of real models are, and the second fitted.
SHAPES = {
    "4:1": ((3072, 768), (256, 64)),
    "1:4": ((768, 3072), (64, 256)),
    "3:1": ((2304, 768), (192, 64)),
    "square": ((768, 768), (64, 64)),
    "prime": ((1549, 769), (127, 61)),
    "prime columns": ((768, 50257), (61, 127)),
    "thin": ((1, 2048), (2, 2)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", space_names())
def test_every_option_has_a_cost_and_the_smallest_of_each_method_a_fit(name, shapes) -> None:
    space, (large, small) = load_space(name), (spec_of(*shape) for shape in shapes)
    for role in (Role.QUERY, Role.UP):
        spec = replace(large, role=role, dtype="bfloat16")
        for option in space.options(spec):
            assert option.fitting(spec) == option
            assert option.cost(spec) <= Keep().cost(spec)
    problem = problem_of(small)
    smallest = {option.name: option for option in space.options(small)}
    for option in smallest.values():
        assert option.build(problem).to_dense().shape == small.shape
