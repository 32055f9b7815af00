"""How requests are declared, checked, called and typed."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError

import pytest
import typer
from typer.testing import CliRunner

from autocompress.cli.requesting import takes
from autocompress.errors import ConfigurationError
from autocompress.requests.base import (
    Request,
    any_of,
    at_least,
    names_in,
    option,
    options_of,
    request,
    setting,
    verb,
)


@request
class Place(Request):
    """Where."""

    folder: str = option(default="here", help="Folder to look in.", free=True)


@request
class Asked(Place):
    """What."""

    name: str = option(help="What to look for.", kw_only=False)
    times: int = option(default=3, help="How often.", check=at_least(1))
    how: str | None = option(default=None, help="Way to look.", check=any_of("near", "far"))
    loud: bool = option(default=True, help="Say what is found.")
    told: object = setting(default=None, help="Told what is found.")


@verb(Asked)
def look(asked: Asked) -> str:
    """Look for something.

    Raises:
        ConfigurationError: it cannot be.
    """
    return f"{asked.times} x {asked.name} in {asked.folder}"


def test_a_function_takes_settings_or_a_request():
    asked = Asked("it", times=2)
    assert look("it", times=2) == look(asked) == "2 x it in here"
    assert look(asked, folder="there") == "2 x it in there"
    with pytest.raises(TypeError):
        look()
    with pytest.raises(FrozenInstanceError):
        asked.times = 4


def test_signature_and_docstring_are_those_of_the_request():
    assert next(iter(inspect.signature(look).parameters)) == "name"
    assert set(inspect.signature(look).parameters) == {
        *("name", "times", "how", "loud", "told", "folder")
    }
    text = inspect.getdoc(look)
    assert text.index("Look for something") < text.index("Args:") < text.index("Raises:")
    assert "    how: Way to look.\n" in text
    assert "    told: Told what is found.\n" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"times": 0}, "--times is too low: got 0, wanted at least 1"),
        ({"how": "neer"}, "unknown --how: got 'neer', wanted near, far. Did you mean near?"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option_named(settings, words):
    with pytest.raises(ConfigurationError, match=words.replace("?", r"\?")):
        Asked("it", **settings)


def test_what_is_stored_shared_and_changed():
    asked = Asked("it", times=2, told=object(), folder="there")
    stored = {"name": "it", "times": 2, "how": None, "loud": True, "folder": "there"}
    assert asked.to_dict() == stored
    assert Asked(**stored).to_dict() == stored
    assert asked.into(Place) == Place(folder="there")
    assert asked.into(Place, folder="else") == Place(folder="else")
    assert asked.changed() == {"name": "it", "times": 2, "folder": "there"}
    assert Asked.free() == {"folder"}
    assert list(options_of(Asked)) == ["name", "times", "how", "loud", "folder"]  # its own first
    assert names_in("a, b,") == names_in(["a", "b"]) == ("a", "b")


def test_a_command_has_the_options_of_the_request_and_its_own():
    seen = []

    @takes(Asked)
    def command(asked: Asked, *, deep: bool = False) -> None:
        """Look."""
        seen.append((asked.to_dict(), deep))

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    run = CliRunner().invoke
    assert run(app, ["--name", "it", "--times", "2", "--no-loud", "--deep"]).exit_code == 0
    assert seen == [
        ({"name": "it", "times": 2, "how": None, "loud": False, "folder": "here"}, True)
    ]
    missing = run(app, [])
    assert missing.exit_code == 2
    assert "--name" in missing.output
    shown = run(app, ["--help"]).output
    assert shown.index("--name") < shown.index("--times") < shown.index("--folder")
    assert "Folder to look in.  [default: here]" in " ".join(shown.split()).replace(". [", ".  [")
