"""How long the menu takes: every option of every matrix fitted and judged, by method and by number.

Options of one matrix share what they can (factors of Gram matrices, spectra, whitened tensors), so
the time per option should fall as a menu grows. The statistics are collected beforehand and are
not in the times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import build_menu
from autocompress.methods.base import Method
from autocompress.records import LayerSpec
from autocompress.requests.groups import SessionRequest
from autocompress.session.session import Session, open_session
from autocompress.space.space import Space
from autocompress.space.space_file import load_space
from autocompress.store import Cache

STRIDES = (8, 4, 2, 1)  # every eighth option, ..., all of them

OptionsOf = Callable[[LayerSpec], Sequence[Method]]


def seconds(session: Session, options_of: OptionsOf) -> tuple[float, int]:
    """Time of a menu built from nothing, and its number of options."""
    with tempfile.TemporaryDirectory() as folder:
        builder = LayerBuilder(session.workbench, session.metrics, Cache(Path(folder)))
        start = time.perf_counter()
        menu = build_menu(builder, options_of, session.workbench.inventory.layers)
        return time.perf_counter() - start, menu.options


def by_number(session: Session, space: Space) -> None:
    """Print what an option costs in menus of growing size."""
    layers = len(session.workbench.inventory.layers)
    print(f"{'options':>8} {'seconds':>8} {'s/matrix':>9} {'ms/option':>10}")
    for stride in STRIDES:
        spent, count = seconds(session, lambda spec, stride=stride: space.options(spec)[::stride])
        print(f"{count:8} {spent:8.1f} {spent / layers:9.2f} {1000 * spent / count:10.1f}")


def by_method(session: Session, space: Space) -> None:
    """Print what each method costs when it is the whole menu."""
    totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for family in space.families:
        chosen = family.name

        def options_of(spec: LayerSpec, name: str = chosen) -> list[Method]:
            return [method for method in space.options(spec) if method.name == name]

        totals[chosen] = seconds(session, options_of)
    print(f"\n{'method':>24} {'options':>8} {'seconds':>8} {'ms/option':>10}")
    for name, (spent, count) in totals.items():
        print(f"{name:>24} {count:8} {spent:8.1f} {1000 * spent / max(count, 1):10.1f}")


def main() -> None:
    """Read the arguments and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or hub name; the bundled model when left out")
    parser.add_argument("--data", help="text file; the bundled texts when left out")
    parser.add_argument("--space", default="default", help="search space, by name or as a file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            SessionRequest(model=arguments.model, data=arguments.data, runs_dir=folder)
        )
        session.metrics  # noqa: B018  # collected before the clock starts
        space = load_space(arguments.space)
        by_number(session, space)
        by_method(session, space)


if __name__ == "__main__":
    main()
