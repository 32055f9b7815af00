from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time

import autocompress
from autocompress.studies.study_store import read_study

FINISHED = 2  # trials that must be there before the process is killed
TRIALS = 5
PATIENCE = 300  # seconds until the test gives up on the process


def finished_trials(database) -> int:
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            query = "select count(*) from trials where state = 'COMPLETE'"
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet, or it is being written
        return 0


def test_a_search_that_is_killed_keeps_what_it_had_and_repeats_none_of_it(
    record, search, workplace
):
    runs = workplace / "runs"
    command = [sys.executable, "-m", "autocompress", "search", "--no-track"]
    command += ["--model", str(workplace / "half demo")]
    command += ["--data", str(workplace / "text.txt"), "--space", str(workplace / "tiny.yaml")]
    command += ["--budget", "8x", "--study", "killed", "--runs-dir", str(runs)]
    with (workplace / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--trials", "1000"], stdout=log, stderr=log, env=os.environ
        )
        try:
            give_up = time.monotonic() + PATIENCE
            while finished_trials(runs / "killed" / "study.db") < FINISHED:
                assert process.poll() is None, (workplace / "log").read_text()
                assert time.monotonic() < give_up
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    kept = read_study("killed", runs).complete
    assert len(kept) >= FINISHED
    total = max(TRIALS, len(kept) + 1)
    after = autocompress.search(resume="killed", trials=total, runs_dir=runs, track=False)
    whole = {trial.number: trial for trial in after.complete}
    for trial in kept:
        found = whole[trial.number]
        assert (found.label, found.plan, found.selection) == (
            trial.label,
            trial.plan,
            trial.selection,
        )
        assert found.seconds == trial.seconds
    labels = [trial.label for trial in after.complete]
    assert len(labels) == len(set(labels)) == total
    # The same plans have the same perplexity in the search that was not killed.
    undisturbed = {trial.plan.hash: trial for trial in record.complete}
    for trial in after.complete:
        if trial.plan.hash in undisturbed:
            assert trial.selection.figure == undisturbed[trial.plan.hash].selection.figure
