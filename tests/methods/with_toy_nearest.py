"""Makes a method known before tests are collected: ``pytest -p tests.methods.with_toy_nearest``."""

from autocompress.methods.registry import METHODS
from tests.methods.examples import EXAMPLES, any_shape
from tests.methods.toy_nearest import Nearest

METHODS[Nearest.name] = Nearest  # the line of the registry
EXAMPLES[Nearest.name] = any_shape(Nearest(), Nearest(symmetric=True))  # the line of the examples
