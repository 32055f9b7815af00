"""Runs a module of the package in a process of its own, which loads models from their folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from autocompress.errors import StorageError

_MARK = "autocompress-answer "  # before the one line of stdout that is the answer
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def answer_of(module: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run ``python -m module``, without a network, and return what it gives to ``give_answer``.

    Args:
        module: its full name.
        arguments: of its command line.
        threads: that torch may use there.

    Raises:
        StorageError: it fails or says nothing.
    """
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    known = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | known,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise StorageError(f"it does not load in a fresh process: {reason}")
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix(_MARK))
    return answer


def give_answer(answer: dict[str, Any]) -> None:
    """Print what the process that started this one waits for."""
    sys.stdout.write(f"{_MARK}{json.dumps(answer)}\n")
