"""Trellis-coded rounding: each code is read together with those before it.

A code of ``b`` bits shifts into a register of ``STATE_BITS`` bits, newest codes highest, and the
register's content names the value, so that few bits an element choose among ``2**STATE_BITS``
values. It comes within 0.7 dB (2 bits) of what rate-distortion theory allows for independent normal
numbers, where rounding each to its own grid stays 2.8 dB away (Marcellin and Fischer 1990;
bit-shift trellises for weights: QTIP, Tseng et al. 2024, arXiv 2406.11235). Deviations from QTIP:
the registers run down the columns of the matrix instead of over tiles, so that error feedback works
on single columns and no Hadamard rotation is stored or computed; chains start in state 0 instead of
biting their tails; the values are normal quantiles in a scrambled order instead of a hash of the
state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import repeat

import torch
from torch import Tensor

from autocompress.numerics.feedback import Feedback, feed_back
from autocompress.numerics.metric import trace
from autocompress.numerics.rounding import in_groups, scale_type

TRELLIS_BITS = (1, 2, 3, 4)
STATE_BITS = 10
# Multiplier that scrambles the order of the states: the best of 60 random ones, by the mean error
# on normal numbers over all bits; it matters by some percent.
SCRAMBLE = 513_259_515
CHAIN_ROWS = 1024  # the register starts afresh so often: chains are coded side by side
# Scale of a group over its root mean square. Coding shrinks values towards zero; on trained
# matrices 1.05 to 1.15 differ by a percent.
SCALE_PER_DEVIATION = 1.1
# Share of the mean row weight that every row has at least. Rows share one register, so a row that
# weighs nothing would be given up; on the bundled model 0.02 stored unseen tokens too badly.
ROW_DAMPING = 0.5


@lru_cache(maxsize=1)
def levels() -> Tensor:
    """The value of each state, fp32 ``[2**STATE_BITS]``: normal quantiles in a fixed order."""
    count = 2**STATE_BITS
    scrambled = (torch.arange(count, device="cpu") * SCRAMBLE + 12_345) % 2**32
    ranks = torch.argsort(torch.argsort(scrambled))
    quantiles: Tensor = torch.special.ndtri((ranks.double() + 0.5) / count)
    return quantiles.float()


def chain_memory(bits: int) -> int:
    """How many codes before an element's own take part in its value."""
    return -(-STATE_BITS // bits) - 1


def states_of(codes: Sequence[Tensor], bits: int) -> Tensor:
    """State of each element from its own code and those above it, newest first.

    Args:
        codes: ``chain_memory(bits) + 1`` tensors uint8 of one shape.
        bits: bits of a code.

    Returns:
        int32 of that shape.
    """
    state = torch.zeros_like(codes[0], dtype=torch.int32)
    for age, code in enumerate(codes):
        shift = STATE_BITS - bits * (age + 1)
        state |= code.int() << shift if shift >= 0 else code.int() >> -shift
    return state


def dequantize(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Values fp32 of all codes of a matrix, uint8 ``[out, in]``, with scales ``[out, groups]``."""
    if codes.device.type == "cpu":
        from autocompress.numerics.trellis_loops import read_codes  # numba imports slowly

        values = torch.empty(codes.shape, dtype=torch.float32, device="cpu")
        read_codes(codes.numpy(), levels().numpy(), bits, CHAIN_ROWS, values.numpy())
        return _scaled(values, scale)
    return scaled_levels(states_of(codes_above(codes, bits), bits), scale)


def codes_above(codes: Tensor, bits: int) -> list[Tensor]:
    """The codes of a matrix and those one, two, ... rows above, as far as registers reach."""
    aged = [codes]
    first = torch.arange(codes.shape[0], device=codes.device) % CHAIN_ROWS
    for age in range(1, chain_memory(bits) + 1):
        above = codes.roll(age, 0)
        above[first < age] = 0
        aged.append(above)
    return aged


def scaled_levels(states: Tensor, scale: Tensor) -> Tensor:
    """Values fp32 of states ``[n, in]`` with scales ``[n, groups]``."""
    return _scaled(levels().to(states.device)[states], scale)


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    return in_groups(values, scale.shape[1]).mul_(scale.float()[..., None]).flatten(-2)


def find_scales(weight: Tensor, groups: int, importance: Tensor) -> Tensor:
    """Scale of every group from its weighted root mean square.

    Args:
        weight: ``[out, in]`` in fp32.
        groups: groups of a row.
        importance: ``[in]``, weight of a column's squared error.

    Returns:
        fp16 or bf16 ``[out, groups]``.
    """
    share = importance.to(weight).reshape(1, groups, -1)
    share = share + 1e-6 * share.mean().clamp_min(torch.finfo(torch.float32).tiny)
    mean = (in_groups(weight, groups).square() * share).sum(-1) / share.sum(-1)
    scale = SCALE_PER_DEVIATION * mean.sqrt()
    return scale.to(scale_type(scale))


SearchPaths = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Finds the codes of a column: of targets and weights of their squared errors, both fp32 ``[n]``,
the codes, uint8 ``[n]``, and the levels that they lead to, fp32 ``[n]``. See ``search_paths``."""


def search_paths(targets: Tensor, weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Find the codes of least weighted squared error of a column, in steps that a GPU takes.

    All chains take a step together, so that there are as many steps as a chain has rows. It is what
    the compiled loop of ``trellis_loops.path_search`` finds; only ties may fall otherwise.
    """
    whole = len(targets) // CHAIN_ROWS * CHAIN_ROWS
    found = [
        _search_chains(targets[rows].reshape(-1, length), weights[rows].reshape(-1, length), bits)
        for rows, length in (
            (slice(0, whole), CHAIN_ROWS),
            (slice(whole, None), len(targets) - whole),
        )
        if length and len(targets[rows])
    ]
    codes, values = zip(*found, strict=True)
    return torch.cat([part.flatten() for part in codes]), torch.cat([v.flatten() for v in values])


def _search_chains(targets: Tensor, weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """See ``search_paths``; of chains ``[chains, steps]``, by the algorithm of Viterbi 1967."""
    chains, steps = targets.shape
    branches, groups = 1 << bits, (1 << STATE_BITS) >> bits
    table = levels().to(targets.device)
    cost = targets.new_full((chains, len(table)), torch.inf)
    cost[:, 0] = 0.0
    origins = torch.empty(steps, chains, groups, dtype=torch.uint8, device=targets.device)
    for step in range(steps):
        least, origin = cost.view(chains, groups, branches).min(-1)
        origins[step] = origin
        errors = (targets[:, step, None] - table).square_().mul_(weights[:, step, None])
        cost = errors.view(chains, branches, groups).add_(least[:, None]).view(chains, -1)
    state = cost.argmin(1)
    states = torch.empty(chains, steps, dtype=torch.long, device=targets.device)
    for step in range(steps - 1, -1, -1):
        states[:, step] = state
        group = state % groups
        state = group * branches + origins[step].gather(1, group[:, None])[:, 0]
    return (states // groups).to(torch.uint8), table[states]


def _compiled_search(bits: int, pool: ThreadPoolExecutor | None) -> SearchPaths:
    """The same by a compiled loop over chains, one to a thread where there is a pool."""
    from autocompress.numerics.trellis_loops import path_search  # numba imports slowly

    search, table = path_search(bits, STATE_BITS, CHAIN_ROWS), levels().numpy()

    def search_column(targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        codes, values = torch.empty(len(targets), dtype=torch.uint8), torch.empty_like(targets)
        arrays = targets.numpy(), weights.numpy(), codes.numpy(), values.numpy()
        if pool is None:
            search(*arrays, table)
        else:
            starts = range(0, len(targets), CHAIN_ROWS)
            shares = ([array[k : k + CHAIN_ROWS] for k in starts] for array in arrays)
            list(pool.map(search, *shares, repeat(table)))
        return codes, values

    return search_column


class Encoder:
    """Codes of a matrix ``[out, in]``, found column by column.

    Args:
        weight: ``[out, in]`` in fp32.
        scale: fp16 or bf16 ``[out, groups]``.
        row_weights: ``[out]``, what an error in each row costs.
        search: finds the codes of a column.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, row_weights: Tensor, search: SearchPaths
    ) -> None:
        self.search = search
        self.columns = weight.T.contiguous()
        self.group_size = weight.shape[1] // scale.shape[1]
        self.scale = scale.float().T.contiguous()  # [groups, out], as what follows
        self.inverse = torch.where(self.scale > 0, 1 / self.scale, 0.0)
        damped = row_weights + ROW_DAMPING * row_weights.mean()
        weights = damped * self.scale.square()
        tiny = torch.finfo(torch.float32).tiny
        self.weights = weights / weights.mean(1, keepdim=True).clamp_min(tiny)
        self.codes = torch.zeros_like(self.columns, dtype=torch.uint8)

    def round_each(self) -> None:
        """Code every column as if they did not interact."""
        for column, targets in enumerate(self.columns):
            self._coded(column, targets)

    def round_with_feedback(self, feedback: Feedback) -> None:
        """Code one column after the other; those not yet coded make up for the error of each.

        As ``numerics.feedback.round_with_feedback``, with a column's codes chosen jointly.
        """
        order, factor = (part.to(self.columns.device) for part in (feedback.order, feedback.factor))
        places = order.tolist()
        feed_back(self.columns[order], factor, lambda i, aims: self._coded(places[i], aims))

    def _coded(self, column: int, targets: Tensor) -> Tensor:
        """Choose the codes of a column for its targets ``[out]``: what they stand for."""
        group = column // self.group_size
        self.codes[column], values = self.search(targets * self.inverse[group], self.weights[group])
        return values * self.scale[group]


def encode(
    weight: Tensor,
    scale: Tensor,
    bits: int,
    *,
    rows: Tensor,
    feedback: Feedback | None = None,
) -> Tensor:
    """Choose codes for a matrix with given scales, where it is.

    Args:
        weight: ``[out, in]`` in fp32.
        scale: fp16 or bf16 ``[out, groups]``.
        bits: bits of a code.
        rows: Gram matrix ``[out, out]`` of the output gradients, or its diagonal ``[out]``.
        feedback: in the Gram matrix of the columns; ``None`` for columns that do not interact.

    Returns:
        uint8 ``[out, in]``.
    """
    weights = rows.float() if rows.ndim == 1 else rows.float().diagonal()
    if not trace(rows) > 0:
        weights = torch.ones_like(weights)
    arguments = (weight, scale.to(weight.device), weights.to(weight.device))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        alone = torch.get_num_threads() == 1 or len(weight) <= CHAIN_ROWS
        search = (
            _compiled_search(bits, None if alone else pool)
            if weight.device.type == "cpu"
            else partial(search_paths, bits=bits)
        )
        encoder = Encoder(*arguments, search)
        if feedback is None:
            encoder.round_each()
        else:
            encoder.round_with_feedback(feedback)
    return encoder.codes.T.contiguous()
