"""One more method is its own file, a line of the registry and one of the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SUITES = (
    "tests/methods/test_conformance.py",
    "tests/methods/test_ranges.py",
    "tests/healing/test_student.py",
    "tests/surgery/test_compressed_model.py",
    "tests/deploy/test_every_method.py",
)
# A fresh process does not know what only these tests have registered.
OF_THE_METHOD = "nearest and not fresh"


def test_all_suites_run_on_it():
    """Conformance, training, copies in memory, export and reload."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.methods.with_toy_nearest"]
    more = ["-p", "no:cacheprovider", "-k", OF_THE_METHOD, *SUITES]
    root = Path(__file__).parents[2]
    ended = subprocess.run([*command, *more], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]
    found = re.search(r"(\d+) passed", ended.stdout)
    assert found is not None
    assert int(found[1]) > 50, ended.stdout[-400:]
