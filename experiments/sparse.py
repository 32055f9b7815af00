"""Print what pruning costs, by ways to choose what is kept, and against rounding at equal bytes.

    python experiments/sparse.py
    python experiments/sparse.py --model DIR --data FILE --tokens 8192

Every linear layer takes the same form; embeddings and heads stay. A figure is the increase of the
log of perplexity on the report text over the dense model. The first table keeps half of all
elements, chosen by: their magnitude; times the energy of their input (Wanda, arXiv 2306.11695); one
by one, the rest making up for each that is dropped (SparseGPT, arXiv 2301.00774, by falling energy
of the columns); the same, and all that is kept refitted: the method `sparse`. The second table
sorts sparse and rounded forms by bytes, in shares of the dense layers. Its last column is what
rounding costs at the same bytes: some layers at more bits, others at fewer, taken as a straight
line between two rounded forms.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autocompress.evaluation.scoring import score
from autocompress.layers.base import CompressedMatrix
from autocompress.layers.sparse import pack_positions
from autocompress.methods.base import MatrixProblem, Method, torch_dtype
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.sparse import Sparse
from autocompress.methods.trellis import Trellis
from autocompress.numerics.pruning import Elimination, prune
from autocompress.numerics.rounding import largest_group
from autocompress.records import Kind, LayerSpec, Role
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session, open_session
from autocompress.surgery.workbench import Build

HALVES = (Sparse("2:4"), Sparse("unstructured", 0.5))
SPARSE = tuple(
    Sparse(*pattern, bits)
    for pattern in (("2:4", 0.5), ("unstructured", 0.5), ("unstructured", 0.3))
    for bits in (0, 8, 4)
)
ROUNDED: tuple[tuple[str, Callable[[LayerSpec], Method]], ...] = (
    *((f"quantize {b} bit", lambda spec, b=b: Quantize(b, _group(spec))) for b in (8, 4, 3, 2)),
    *((f"trellis {b} bit", lambda spec, b=b: Trellis(b, _group(spec))) for b in (4, 3, 2)),
)
GRAMS = {
    "magnitude": lambda gram: torch.ones(len(gram)),
    "x input energy": lambda gram: gram if gram.ndim == 1 else gram.diagonal(),
    "one by one": lambda gram: gram,
}


@dataclass(frozen=True)
class Figure:
    """A form, its bytes in shares of the dense layers, and the increase of log-perplexity."""

    label: str
    share: float
    increase: float


def _group(spec: LayerSpec) -> int:
    return largest_group(spec.in_features, 64)


def prune_only(problem: MatrixProblem, method: Sparse, gram: torch.Tensor) -> CompressedMatrix:
    """A sparse layer as pruning in a Gram matrix leaves it, not refitted."""
    spec, kept = problem.spec, None if method.pattern == "2:4" else method.kept(problem.spec)
    mask, values = prune(problem.weight32, Elimination.of(gram), kept)
    layer = method.skeleton(spec)
    stored = {
        "values.weight": values[mask].reshape(spec.out_features, -1).to(torch_dtype(spec)),
        "positions": pack_positions(mask, kept),
    }
    bias = {} if problem.bias is None else {"bias": problem.bias}
    layer.load_state_dict(stored | bias)
    return layer


class Bench:
    """Measures forms of all linear layers of one model."""

    def __init__(self, session: Session, tokens: int) -> None:
        self.session, self.text = session, session.scored_text("report", tokens)
        self.specs = [
            spec
            for spec in session.workbench.inventory.layers
            if spec.kind is not Kind.EMBEDDING and spec.role is not Role.HEAD
        ]
        self.dense = score(session.loaded.model, self.text.windows, self.text.teacher).figure
        self.bytes = sum(Keep().cost(spec) for spec in self.specs)

    def figure(
        self, label: str, method_of: Callable[[LayerSpec], Method], build: Build | None = None
    ) -> Figure:
        """Measure one form."""
        plan = {spec.name: method_of(spec) for spec in self.specs}
        with self.session.workbench.applied(
            Plan.of(plan), build or self.session.builder.build
        ) as model:
            perplexity = score(model, self.text.windows, self.text.teacher).figure
        size = sum(plan[spec.name].cost(spec) for spec in self.specs)
        return Figure(label, size / self.bytes, math.log(perplexity / self.dense))

    def pruned(self, name: str, method: Sparse) -> Figure:
        """Measure a half, chosen in the Gram matrix of that name and not refitted."""

        def build(layer: str, _: Method) -> CompressedMatrix:
            metric = self.session.metrics[layer]
            gram = GRAMS[name](metric.columns.float())
            return prune_only(self.session.workbench.problem(layer, metric), method, gram)

        return self.figure(name, lambda _: method, build)


def increase_at(share: float, figures: Sequence[Figure]) -> float:
    """Least increase at some bytes on a line between two forms, or of one that is no larger."""
    least = min((each.increase for each in figures if each.share <= share), default=math.inf)
    for small, large in itertools.permutations(figures, 2):
        if small.share <= share < large.share:
            weight = (share - small.share) / (large.share - small.share)
            least = min(least, small.increase + weight * (large.increase - small.increase))
    return least


def print_by_bytes(sparse: Sequence[Figure], rounded: Sequence[Figure]) -> None:
    """Print the table of all forms."""
    print(f"\n{'form':<22}{'bytes':>9}{'increase':>9}{'rounded':>9}")
    for figure in sorted((*sparse, *rounded), key=lambda each: -each.share):
        other = increase_at(figure.share, rounded) if figure in sparse else math.inf
        at_equal_bytes = f"{other:9.4f}" if math.isfinite(other) else ""
        print(f"{figure.label:<22}{figure.share:9.3f}{figure.increase:9.4f}{at_equal_bytes}")


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument("--data", help="text file; the bundled texts when left out")
    parser.add_argument("--dtype", help="float32 or bfloat16; as stored when left out")
    parser.add_argument("--tokens", type=int, default=8192, help="of the report text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            SessionRequest(
                model=options.model,
                data=options.data,
                runs_dir=folder,
                compute_dtype=options.dtype,
            )
        )
        bench = Bench(session, options.tokens)
        print(f"dense: perplexity {bench.dense:.4f}; increases of its logarithm:\n")
        print(f"{'a half kept by':<22}{'2:4':>9}{'free':>9}")
        for name in GRAMS:
            increases = [bench.pruned(name, method).increase for method in HALVES]
            print(f"{name:<22}" + "".join(f"{increase:9.4f}" for increase in increases), flush=True)
        sparse = [bench.figure(str(form), lambda _, form=form: form) for form in SPARSE]
        refitted = [next(f.increase for f in sparse if f.label == str(half)) for half in HALVES]
        print(f"{'and refitted':<22}" + "".join(f"{increase:9.4f}" for increase in refitted))
        print_by_bytes(sparse, [bench.figure(*form) for form in ROUNDED])


if __name__ == "__main__":
    main()
