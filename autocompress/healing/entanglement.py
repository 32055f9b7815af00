"""The entanglement of a student's factorised layers, as a loss that lowers their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autocompress.healing.student import Student
from autocompress.layers.base import CompressedEmbedding, CompressedMatrix
from autocompress.layers.bonds import Bonds
from autocompress.methods.penalties import Penalty, chosen_penalties
from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.tensors.entanglement import lowering_entropy

LARGEST_GRAM = 1024  # of a side in full; all layers' whitenings are held while a model is trained
TURNS = 4  # steps in which every layer pays once, for all of them


class EntanglementPenalty:
    """Weighted entropies at the bonds of layers, summed.

    Descent only lowers values, see ``lowering_entropy``.

    They need decompositions of matrices as large as the ranks, which is why a step asks a part of
    the layers only, each for the weight of all the steps until its next turn.

    Args:
        student: whose factors are trained.
        penalties: the first that matches a layer counts there.
        metrics: by layer name. Entropies are those of singular values in the metric, which ranks
            are cut in as well, but of a side above ``LARGEST_GRAM`` in its diagonal, to save
            memory; plain for layers that have none.

    Raises:
        ConfigurationError: a penalty counts for no factorised layer.
    """

    def __init__(
        self,
        student: Student,
        penalties: Sequence[Penalty],
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        names = [name for name, method in student.plan.items() if method.factorised]
        chosen = chosen_penalties(penalties, names) if penalties else {}
        layers = [
            (penalty, _bonds(student, name, (metrics or {}).get(name)))
            for name, penalty in chosen.items()
        ]
        self._layers = [(penalty, bonds) for penalty, bonds in layers if bonds.values()]

    def on_step(self, step: int) -> Tensor | None:
        """The loss of the layers whose turn it is, or ``None`` if there are none."""
        turn = self._layers[step % TURNS :: TURNS]
        return TURNS * _sum(turn) if turn else None

    def total(self) -> float:
        """The loss of all layers."""
        with torch.no_grad():
            return float(_sum(self._layers)) if self._layers else 0.0


def _sum(layers: Sequence[tuple[Penalty, Bonds]]) -> Tensor:
    return torch.stack(
        [
            penalty.weight * lowering_entropy(values, penalty.order)
            for penalty, bonds in layers
            for values in bonds.values()
        ]
    ).sum()


def _bonds(student: Student, name: str, metric: Metric | None) -> Bonds:
    module = student.model.get_submodule(name)
    matrix = module.matrix if isinstance(module, CompressedEmbedding) else module
    assert isinstance(matrix, CompressedMatrix)
    bonds = matrix.bonds(None if metric is None else _small(metric))
    assert bonds is not None  # the plan says that it is factorised
    return bonds


def _small(metric: Metric) -> Metric:
    rows, columns = (
        gram.diagonal() if gram.ndim == 2 and len(gram) > LARGEST_GRAM else gram
        for gram in (metric.rows, metric.columns)
    )
    return Metric((Curvature(rows, columns),))
