"""Asking the C library for memory back does what it can, and nothing where there is no glibc."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from autocompress.free_memory import give_back_memory, peak_memory_bytes


@pytest.fixture
def libc(monkeypatch):
    """A C library that notes what it is told."""
    calls = []
    library = SimpleNamespace(malloc_trim=lambda *values: calls.append(("malloc_trim", *values)))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    return library, calls


def test_glibc_is_told(libc, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    give_back_memory()
    assert libc[1] == [("malloc_trim", 0)]


def test_another_library_and_another_system_are_left_alone(libc, monkeypatch):
    library, calls = libc
    monkeypatch.setattr(sys, "platform", "darwin")
    give_back_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    del library.malloc_trim
    give_back_memory()
    assert calls == []


def test_the_real_one_takes_it():
    give_back_memory()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is of Linux")
def test_a_process_does_not_take_over_the_peak_of_the_one_that_started_it():
    ballast = b"x" * 2**26
    program = "from autocompress.free_memory import peak_memory_bytes\nprint(peak_memory_bytes())"
    command = [sys.executable, "-c", program]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0 < int(seen) < len(ballast) < peak_memory_bytes()
