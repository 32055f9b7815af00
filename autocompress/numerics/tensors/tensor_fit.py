"""Fitting the cores of any folded form to a matrix in the metric of the loss, without data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocompress.numerics.kronecker import KroneckerWhitening, apply_product
from autocompress.numerics.metric import Metric, apply_gram
from autocompress.numerics.svd import shrunk
from autocompress.numerics.tensors.entanglement import lost_beyond

# Evaluations of the loss increase and its slope per fit. On trained matrices 8, 16 and 40 take the
# loss increase of a plain tensor train to 37, 29 and 23 %: later ones are not worth their time in a
# menu.
EVALUATIONS = 16
HISTORY = 10  # steps that L-BFGS remembers
# Share of the mean diagonal added to the Gram matrices while cores are improved. The better
# conditioned problem is solved further in as many steps: less loss increase in the metric as it is,
# too.
FIT_SHRINKAGE = 2e-2
LEAST_ENVIRONMENT = 1e-2  # directions of a core that count less than this share count as much

Environment = Sequence[tuple[int, Tensor]]  # dimensions of a core, each with a Gram matrix


@dataclass(frozen=True)
class TensorForm(ABC):
    """A multilinear form of a matrix whose sides are folded into modes.

    Attributes:
        ranks: as the form counts them.
        out_modes: modes of the rows; their product may exceed the rows (padding).
        in_modes: modes of the columns.
    """

    ranks: tuple[int, ...]
    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]

    @abstractmethod
    def decompose(self, matrix: Tensor) -> list[Tensor]:
        """Cores near ``matrix [prod out_modes, prod in_modes]`` in the Frobenius norm."""

    @abstractmethod
    def multiply_out(self, cores: Sequence[Tensor]) -> Tensor:
        """The matrix ``[prod out_modes, prod in_modes]``; linear in each core."""

    @abstractmethod
    def environments(self, cores: Sequence[Tensor]) -> list[Environment]:
        """For each core the Gram matrices of what its dimensions are multiplied by.

        Their Kronecker product (identity for dimensions left out) is the Gram matrix of the linear
        map from the core to the matrix.
        """

    @abstractmethod
    def absorb(
        self, cores: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Cores of the matrix multiplied by Kronecker products of symmetric matrices.

        ``rows``, one per out mode, from the left; ``columns``, one per in mode, from the right;
        diagonal ones may be given as diagonals.
        """

    @abstractmethod
    def bonds(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Singular values at each bond of the cores, one bond for each rank."""

    def lost(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Share of the squared norm lost at each bond, ``[k + 1]`` by the rank that is kept."""
        return [lost_beyond(values) for values in self.bonds(cores)]


class FitTarget:
    """A matrix and its metric in the coordinates of a whitening, padded.

    Args:
        weight: ``[out, in]`` in fp32.
        metric: what a change of it costs.
        whitening: the coordinates; its modes say how far to pad. Padding costs nothing.
        shrinkage: share of the mean diagonal that is added to the Gram matrices.
    """

    def __init__(
        self,
        weight: Tensor,
        metric: Metric,
        whitening: KroneckerWhitening,
        *,
        shrinkage: float = FIT_SHRINKAGE,
    ) -> None:
        sizes = ([len(root) for root in roots] for roots in (whitening.rows, whitening.columns))
        padded = pad_to(weight, *sizes)
        self.whitening = whitening
        self.matrix = apply_product(
            whitening.columns, apply_product(whitening.rows, padded).T
        ).T.contiguous()
        self.terms = [
            (
                _whitened(term.rows.to(weight), whitening.rows_inverse, shrinkage),
                _whitened(term.columns.to(weight), whitening.columns_inverse, shrinkage),
            )
            for term in metric.terms
        ]

    def slope(self, change: Tensor) -> Tensor:
        """Derivative of the loss increase by the matrix, ``sum of S D G``, ``[out, in]``."""
        total: Tensor | None = None
        for rows, columns in self.terms:
            part = apply_gram(rows, apply_gram(columns, change.T).T)
            total = part if total is None else total.add_(part)
        return torch.zeros_like(change) if total is None else total

    def loss_increase(self, matrix: Tensor) -> float:
        """Loss increase of an approximation in these coordinates, in nats per token."""
        change = matrix - self.matrix
        return 0.5 * float((change * self.slope(change)).sum())


def pad_to(weight: Tensor, out_modes: Sequence[int], in_modes: Sequence[int]) -> Tensor:
    """``weight [out, in]`` with zeros up to the products of the modes."""
    rows, columns = prod(out_modes) - weight.shape[0], prod(in_modes) - weight.shape[1]
    return pad(weight, (0, columns, 0, rows))


def _whitened(gram: Tensor, inverses: Sequence[Tensor], shrinkage: float) -> Tensor:
    """``X gram X`` for the Kronecker product ``X`` of inverse roots; a diagonal if it stays one."""
    gram = shrunk(gram, shrinkage).float()
    missing = prod(len(inverse) for inverse in inverses) - len(gram)
    if gram.ndim == 1:
        padded = pad(gram, (0, missing))
        if all(inverse.ndim == 1 for inverse in inverses):
            return apply_product([i.square() for i in inverses], padded[:, None])[:, 0]
        padded = torch.diag(padded)
    else:
        padded = pad(gram, (0, missing, 0, missing))
    return apply_product(inverses, apply_product(inverses, padded).T).contiguous()


def refine(
    form: TensorForm,
    cores: Sequence[Tensor],
    target: FitTarget,
    *,
    evaluations: int = EVALUATIONS,
    fixed: Collection[int] = (),
) -> list[Tensor]:
    """Improve cores against the loss increase; what is returned is never worse than what was given.

    L-BFGS over all cores at once (Nocedal 1980). The loss increase and its slope by the matrix, ``S
    D G``, take two products of the matrix's size, and the chain rule does the rest. Each core is
    transformed by the inverse factors of its environment at the start, so that every direction
    changes the whitened matrix alike; alternating least squares does the same exactly, core after
    core, but got less far in as many products on trained matrices.

    Args:
        form: how cores make a matrix.
        cores: in the coordinates of the target, fp32.
        target: matrix and metric.
        evaluations: of loss increase and slope, about.
        fixed: indices of cores that stay as they are.
    """
    free = [k for k in range(len(cores)) if k not in fixed]
    if not free:
        return list(cores)
    environments = form.environments(cores)
    roots = {k: [(dim, *_roots(gram)) for dim, gram in environments[k]] for k in free}
    variables = [_along(cores[k], [(dim, root) for dim, root, _ in roots[k]]).clone() for k in free]

    def cores_of(variables: Sequence[Tensor]) -> list[Tensor]:
        changed = list(cores)
        for k, variable in zip(free, variables, strict=True):
            changed[k] = _along(variable, [(dim, inverse) for dim, _, inverse in roots[k]])
        return changed

    best = _minimise(
        lambda variables: form.multiply_out(cores_of(variables)), variables, target, evaluations
    )
    return list(cores) if best is None else cores_of(best)


def _minimise(
    matrix_of: Callable[[Sequence[Tensor]], Tensor],
    variables: Sequence[Tensor],
    target: FitTarget,
    evaluations: int,
) -> list[Tensor] | None:
    """The best variables met, or ``None`` if none were better than the first."""
    points = [variable.contiguous().requires_grad_(True) for variable in variables]
    optimizer = torch.optim.LBFGS(
        points,
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    least: float | None = None
    best: list[Tensor] | None = None

    @torch.enable_grad()
    def closure() -> float:
        nonlocal least, best
        matrix = matrix_of(points)
        change = matrix.detach() - target.matrix
        slope = target.slope(change)
        for point, gradient in zip(points, torch.autograd.grad(matrix, points, slope), strict=True):
            point.grad = gradient.contiguous()
        loss_increase = 0.5 * float((change * slope).sum())
        if least is None:
            least = loss_increase
        elif loss_increase < least:
            least, best = loss_increase, [point.detach().clone() for point in points]
        return loss_increase

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return best


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor ``L`` of an environment ``[n, n]`` and its inverse; weak directions raised.

    A core times ``L`` changes the matrix by as much as it is long.
    """
    identity = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    floor = LEAST_ENVIRONMENT * float(gram.norm())
    if not 0 < floor < inf:
        return identity.float(), identity.float()
    factor = torch.linalg.cholesky(gram.double() + floor * identity)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return factor.float(), inverse.float()


def _along(core: Tensor, matrices: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Multiply dimensions of a core from the right by matrices ``[n, n]``."""
    for dim, matrix in matrices:
        core = torch.tensordot(core, matrix, dims=([dim], [0])).movedim(-1, dim)
    return core
