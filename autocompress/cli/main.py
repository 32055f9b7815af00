"""The commands, and the one place where an error becomes a paragraph and an exit code."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from autocompress.cli.attribute import attribute
from autocompress.cli.cache import cache
from autocompress.cli.compress import compress
from autocompress.cli.evaluate import evaluate
from autocompress.cli.export import export
from autocompress.cli.front import front
from autocompress.cli.heal import heal
from autocompress.cli.profile import profile
from autocompress.cli.search import search
from autocompress.cli.validate import validate
from autocompress.errors import AutocompressError

DEBUG = "--debug"
INTERRUPTED_TEXT = (
    "Interrupted. What had finished is on disk; "
    "`autocompress search --resume STUDY` goes on with a search, the same command with healing; "
    "anything else is quicker the second time."
)
INTERRUPTED = 128 + signal.SIGINT  # as shells number a program ended by a signal
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 1  # as typer has it
# Troubles of the machine, which a person can do something about.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

HELP = """Finds, layer by layer, how to store each weight matrix of a transformer under a budget \
of memory or latency.

\b
autocompress search --budget 10x           search on the bundled model
autocompress search --model ID --budget 4x search on one of yours
autocompress front                         what the latest study found
autocompress heal --trial best             train its stored weights, as a further trial
autocompress attribute --trial best        what its methods and layers save, and harm
autocompress export --trial best --out DIR write the best trial as a model
autocompress compress ID --budget 4x --out DIR
                                           one plan for the budget, without a search
autocompress cache                         what is kept to be quick the second time

Exit codes: 0 done, 2 usage or configuration, 3 no plan meets the budget, 1 anything else.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: examples keep their lines, and it starts in half the time
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _help_of(command: Callable[..., None]) -> str:
    r"""The docstring of a command as its help: ``\b`` before lines to keep, without ``Raises``."""
    text = inspect.getdoc(command) or ""
    return text.partition("\nRaises:")[0].replace("\\b", "\b")


COMMANDS = (
    *(search, front, heal, attribute, export, evaluate),
    *(profile, compress, validate, cache),
)
for command in COMMANDS:
    app.command(help=_help_of(command))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from autocompress import __version__

        typer.echo(f"autocompress {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an expected error as well.")
    ] = False,
) -> None:
    """Declare the options.

    The version is printed by its callback, and main() takes --debug out wherever it stands.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: those after the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _terminated_as_interrupted() as terminated:
        code = _run(arguments)
    return TERMINATED if terminated and code == INTERRUPTED else code


@contextmanager
def _terminated_as_interrupted() -> Iterator[list[int]]:
    """Let SIGTERM (``kill``, a batch system) end what runs in good order, as Ctrl-C does.

    It is all that ends a command that a script has started in the background: its shell has SIGINT
    ignored there. What is ignored stays so.

    Yields:
        The signals that came.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: object) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not own or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    debug = DEBUG in arguments
    try:
        app([argument for argument in arguments if argument != DEBUG], prog_name="autocompress")
    except SystemExit as ended:
        return _finish(ended.code)
    except BrokenPipeError:
        return _close_pipe()
    except AutocompressError as error:
        return _report(str(error), error.exit_code, debug)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return _report(_disk_paragraph(error), 1, debug)
    return 0


def _finish(code: int | str | None) -> int:
    """What is left to do when typer ends by itself, which is always."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_pipe()
    if code == INTERRUPTED:
        sys.stderr.write(f"{INTERRUPTED_TEXT}\n")
    return code if isinstance(code, int) else 0 if code is None else 1


def _close_pipe() -> int:
    """Leave quietly when the reader of stdout (``| head``) is gone, also in Python's last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _report(paragraph: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"Error: {paragraph}\n")
    return code


def _disk_paragraph(error: OSError) -> str:
    place = f" {error.filename}" if error.filename else ""
    return (
        f"the file{place} cannot be written or read: {error.strerror}. "
        "What had finished is kept; try again elsewhere."
    )
