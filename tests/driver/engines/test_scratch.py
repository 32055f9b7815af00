from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from autocompress.driver.engines.scratch import OWNER, scratch_folder

KILLED = """
import os, signal
from autocompress.driver.engines.scratch import scratch_folder
with scratch_folder("of-a-test-"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_folder_goes_with_its_block(tmp_path):
    with scratch_folder("of-a-test-") as folder:
        assert folder.parent == tmp_path
        (folder / "large").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    (left,) = tmp_path.iterdir()
    of_another_program = tmp_path / "of-a-test-of-another-program"
    of_another_program.mkdir()
    with scratch_folder("of-a-test-") as ours, scratch_folder("of-a-test-") as second:
        assert not left.exists()
        assert int((ours / OWNER).read_text()) == os.getpid()
        assert set(tmp_path.iterdir()) == {ours, second, of_another_program}


def test_a_marker_that_cannot_be_read_is_left_alone(tmp_path):
    odd = tmp_path / "of-a-test-odd"
    odd.mkdir()
    (odd / OWNER).write_text("no number")
    with scratch_folder("of-a-test-"):
        assert odd.exists()
