"""What a result depends on beside the study: Python, packages, machine, threads, git revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

GIT_TIMEOUT_SECONDS = 5.0


def describe_environment() -> dict[str, Any]:
    """Versions, platform and threads as a plain mapping."""
    torch = sys.modules.get("torch")
    packages = {
        found.metadata["Name"]: found.version for found in distributions() if found.metadata["Name"]
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": None if torch is None else torch.get_num_threads(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def git_revision(folder: Path) -> dict[str, str]:
    """Commit of the repository around ``folder`` and whether files changed since; else empty."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "changed": "unknown" if changed is None else "yes" if changed else "no",
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
