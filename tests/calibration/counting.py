"""A builder that counts, and a small menu."""

from __future__ import annotations

from collections import Counter

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.fitting import build_menu
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd

METHODS: tuple[Method, ...] = (Keep(), Quantize(8, 16), Quantize(3, 16), Quantize(2, 0), Svd(4))


class CountingBuilder(LayerBuilder):
    """Counts what is fitted."""

    fits: Counter[tuple[str, Method]]

    def fit(self, name, method):
        self.fits[name, method] += 1
        return super().fit(name, method)


def menu_with(builder):
    return build_menu(builder, lambda _spec: METHODS, builder.workbench.inventory.layers)
