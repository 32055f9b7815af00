from __future__ import annotations

import sys

import pytest
import torch

from autocompress.free_memory import peak_memory_bytes
from autocompress.progress import Silent
from autocompress.stage_memory import StageMemory, describe_peaks

MEGABYTE = 2**20


def hold(megabytes):
    """Touch so much memory for a moment."""
    return float(torch.ones(megabytes * MEGABYTE // 4).sum())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of stages")
def test_each_stage_has_its_own_peak_and_the_process_that_of_all():
    memory = StageMemory()
    with memory.task("Large (matrices)", 2) as advance:
        hold(300)
        advance(1)
    with memory.task("Small"):
        hold(1)
    peaks = memory.peaks
    assert list(peaks) == ["Large", "Small"]
    assert peaks["Large"] - peaks["Small"] > 250 * MEGABYTE
    assert peak_memory_bytes() >= peaks["Large"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of stages")
def test_a_stage_holds_what_those_inside_it_hold():
    memory = StageMemory()
    with memory.task("Outer"):
        with memory.task("Inner"):
            hold(300)
        with memory.task("Later"):
            hold(1)
    peaks = memory.peaks
    assert peaks["Outer"] >= peaks["Inner"] > peaks["Later"] + 250 * MEGABYTE
    with memory.task("Outer"):
        hold(1)
    assert memory.peaks == peaks  # of several the highest


def test_everything_is_passed_on():
    class Heard(Silent):
        said: list[str]

        def __init__(self):
            self.said = []

        def note(self, message):
            self.said.append(message)

    heard = Heard()
    memory = StageMemory(heard)
    memory.note("a line")
    assert heard.said == ["a line"]


def test_peaks_are_said_in_words():
    assert describe_peaks({"Calibrating": 1_200_000_000, "Searching": 5_000_000}) == (
        "calibrating 1.2 GB, searching 5 MB"
    )
