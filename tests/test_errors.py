from __future__ import annotations

import inspect
import pickle

import pytest

from autocompress import errors
from autocompress.errors import AutocompressError, BudgetUnreachable, StorageError, TimeIsUp

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AutocompressError)
]


def test_a_message_says_what_got_wanted_and_what_to_do():
    error = AutocompressError("--budget is odd", got="'0x'", wanted="10x", hint="Try 10x.")
    assert str(error) == "--budget is odd: got '0x', wanted 10x. Try 10x."
    assert str(AutocompressError("gone")) == "gone"
    assert str(AutocompressError("gone", got=0)) == "gone: got 0"


@pytest.mark.parametrize("kind", TREE)
def test_every_error_keeps_its_type_and_parts_when_a_place_is_added(kind):
    error = kind("bad rank", got=9, wanted="at most 8", hint="Lower it.")
    placed = error.within("layer head")
    assert type(placed) is kind
    assert str(placed) == "layer head: bad rank: got 9, wanted at most 8. Lower it."
    assert placed.exit_code == error.exit_code


@pytest.mark.parametrize("kind", TREE)
def test_exit_codes(kind):
    general = (AutocompressError, StorageError, TimeIsUp)
    expected = 3 if kind is BudgetUnreachable else 1 if kind in general else 2
    assert kind.exit_code == expected


@pytest.mark.parametrize("kind", TREE)
def test_errors_travel_between_processes(kind):
    error = kind("bad rank", got=9, wanted="at most 8", hint="Lower it.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    fields = (copy.what, copy.got, copy.wanted, copy.hint)
    assert fields == ("bad rank", 9, "at most 8", "Lower it.")
