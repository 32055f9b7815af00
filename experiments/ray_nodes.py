"""Search on two nodes of Ray, on one machine, and kill one midway: what is lost, and what is found.

    python experiments/ray_nodes.py
    python experiments/ray_nodes.py --model DIR --data FILE --budget 4x --effort quick

Two nodes are started with `ray start`, one core each, on the loopback interface and in folders of
their own. `autocompress search --engine ray --address` runs twice, from an empty cache each time:
undisturbed, and with the second node killed, all its processes at once, after a part of the seconds
that the first search took. Printed are the seconds of both, what the second said of lost workers,
how many entries of the cache were written again after the kill though they had been finished (those
of the task that the node was at: how long before the kill the first of them was), and whether both
found the same plans. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

MAIN = "import sys; from autocompress.cli.main import main; sys.exit(main())"
# All on one machine: a token that lies in a home folder would be asked of some and not of others.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_AUTH_MODE": "disabled",
}
RAY = Path(sys.executable).parent / "ray"
HOST = "127.0.0.1"


class Ran(NamedTuple):
    """Seconds of a search, what it said, and its study's folder."""

    seconds: float
    said: str
    folder: Path


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


def start_node(*options: str) -> list[psutil.Process]:
    """Start a node; its processes."""
    before = set(psutil.pids())
    command = [str(RAY), "start", f"--node-ip-address={HOST}", "--num-cpus=1", *options]
    subprocess.run(command, env=os.environ | QUIET, check=True, capture_output=True)
    found = []
    for pid in set(psutil.pids()) - before:
        try:
            process = psutil.Process(pid)
            if "ray" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_node(processes: list[psutil.Process]) -> None:
    """Kill a node with all that runs on it, at once."""
    every = set(processes)
    for process in processes:
        try:
            every.update(process.children(recursive=True))
        except psutil.Error:
            continue
    for process in every:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


@contextmanager
def two_nodes() -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of two nodes, and the processes of the second."""
    # Sockets have paths of at most 107 bytes: short folders.
    with tempfile.TemporaryDirectory(prefix="r") as one, tempfile.TemporaryDirectory(prefix="r"):
        port = free_port()
        head = start_node(
            "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={one}"
        )
        second = start_node(f"--address={HOST}:{port}")
        try:
            yield f"{HOST}:{port}", second
        finally:
            kill_node([*second, *head])


def search(runs: Path, address: str, args: argparse.Namespace) -> Ran:
    """Run a search on the nodes, from the command line."""
    command = ["search", "--budget", args.budget, "--effort", args.effort, "--study", "nodes"]
    command += ["--engine", "ray", "--address", address, "--workers", "2"]
    command += ["--runs-dir", str(runs), "--no-track"]
    for name in ("model", "data"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(Path(getattr(args, name)).absolute())]
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", MAIN, *command],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    if ran.returncode:
        sys.exit(f"the search ended with status {ran.returncode}:\n{ran.stderr[-4000:]}")
    return Ran(seconds, ran.stderr, runs / "nodes")


class Entry(NamedTuple):
    """The number of a file, a new one where it is written again, and when it was written."""

    number: int
    written: float


def kept(runs: Path) -> dict[Path, Entry]:
    """The entries of the cache that are written once."""
    every = (path for kind in ("layers", "statistics") for path in runs.rglob(f"{kind}/**/*"))
    files = {path: path.stat() for path in every if path.suffix == ".safetensors"}
    return {path: Entry(file.st_ino, file.st_mtime) for path, file in files.items()}


def plans(folder: Path) -> dict[str, float]:
    """Plans of the finished trials, with their divergence on the selection text."""
    from autocompress.studies.study_store import read_study

    study = read_study(folder.name, folder.parent)
    return {
        trial.plan.hash: trial.selection.divergence for trial in study.complete if trial.selection
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder; the bundled model when left out")
    parser.add_argument("--data", help="text file; the bundled texts when left out")
    parser.add_argument("--budget", default="10x")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--after", type=float, default=0.5, help="share of the time, to kill at")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        with two_nodes() as (address, _second):
            whole = search(Path(scratch) / "whole", address, args)
        print(f"undisturbed: {whole.seconds:.0f} s", flush=True)
        finished: dict[Path, Entry] = {}
        runs, at = Path(scratch) / "killed", list[float]()
        with two_nodes() as (address, second):

            def kill() -> None:
                at.append(time.time())
                finished.update(kept(runs))
                kill_node(second)

            timer = threading.Timer(args.after * whole.seconds, kill)
            timer.start()
            killed = search(runs, address, args)
            timer.cancel()
        now = kept(runs)
        again = [
            entry for path, entry in finished.items() if now.get(path, entry).number != entry.number
        ]
        lost = [line for line in killed.said.splitlines() if "lost" in line]
        print(f"one node killed after {args.after * whole.seconds:.0f} s: {killed.seconds:.0f} s")
        print("\n".join(f"  {line}" for line in lost) or "  it said nothing of lost workers")
        print(
            f"finished entries of the cache by then: {len(finished)}, written again: {len(again)}"
        )
        if again:
            before = at[0] - min(entry.written for entry in again)
            print(f"  the first of these was written {before:.1f} s before the kill")
        ours, others = plans(whole.folder), plans(killed.folder)
        common = ours.keys() & others.keys()
        print(f"plans measured: {len(ours)} and {len(others)}, {len(common)} of them the same")
        apart = max((abs(ours[plan] - others[plan]) for plan in common), default=0.0)
        print(f"their divergences differ by {apart:.2g} at most")


if __name__ == "__main__":
    main()
