from __future__ import annotations

import torch

from autocompress.calibration.special_rows import at_least_average
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec, Role


def spec(role: Role) -> LayerSpec:
    return LayerSpec("embed", role, Kind.EMBEDDING, 4, 2)


def test_special_rows_get_at_least_an_average_frequency() -> None:
    head = Curvature(torch.full((4,), 0.01), torch.eye(2), 10)
    lookup = Curvature(torch.tensor([0.0, 0.6, 0.001, 0.399]), torch.eye(2), 10)
    metric = at_least_average(Metric((lookup, head)), spec(Role.EMBEDDING), (0, 1, 9))
    torch.testing.assert_close(metric.terms[0].rows, torch.tensor([0.25, 0.6, 0.001, 0.399]))
    assert metric.terms[1] is head


def test_a_table_of_positions_has_no_tokens() -> None:
    metric = Metric((Curvature(torch.zeros(4), torch.eye(2), 10),))
    assert at_least_average(metric, spec(Role.OTHER), (0,)) is metric
