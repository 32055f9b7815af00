import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from autocompress import __version__
from autocompress.cli import main as shell
from autocompress.cli.output import ConsoleProgress, print_json
from autocompress.errors import BudgetUnreachable, ConfigurationError

COMMANDS = (
    "search",
    "front",
    "heal",
    "attribute",
    "export",
    "evaluate",
    "profile",
    "compress",
    "validate",
    "cache",
)
HEAVY = (
    "torch",
    "transformers",
    "optuna",
    "mlflow",
    "ray",
    "datasets",
    "scipy",
    "numpy",
    "matplotlib",
    "plotly",
)


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom autocompress.cli.main import main\n"
        f"for arguments in [['--help'], ['--version'], *([c, '--help'] for c in {COMMANDS!r})]:\n"
        "    code = main(arguments)\n"
        f"    print('\\n', arguments, code, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ends = [line for line in run.stdout.splitlines() if line.endswith("]") and " [" in line[:2]]
    assert len(ends) == len(COMMANDS) + 2
    assert all(line.endswith(" 0 []") for line in ends), ends


def test_help_lists_every_command(capsys):
    assert shell.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command}  " in text for command in COMMANDS)
    assert "\b" not in text
    assert "autocompress search --budget 10x " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(capsys, command):
    assert shell.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n  autocompress {command}" in text
    assert "\\b" not in text


def test_version(capsys):
    assert shell.main(["--version"]) == 0
    assert capsys.readouterr().out == f"autocompress {__version__}\n"


@pytest.mark.parametrize("arguments", [["validate"], ["validat"], ["validate", "--jsn", "x"], []])
def test_usage_errors_exit_with_2(capsys, arguments):
    assert shell.main(arguments) == 2
    assert "Usage: autocompress" in "".join(capsys.readouterr())


@pytest.fixture
def raising(monkeypatch):
    """Put a command in the program that raises."""

    def make(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
        app.callback()(shell._global_options)

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(shell, "app", app)

    return make


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("the key", got="x", wanted="y", hint="Do z."), 2),
        (BudgetUnreachable("the budget"), 3),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there"), 1),
    ],
)
def test_expected_errors_are_one_paragraph(raising, capsys, error, code):
    raising(error)
    assert shell.main(["fail"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_too(raising, capsys, arguments):
    raising(ConfigurationError("the key"))
    assert shell.main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("Error: the key\n")


def test_unexpected_errors_are_not_hidden(raising):
    raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        shell.main(["fail"])


def test_interrupt_says_how_to_go_on(raising, capsys):
    raising(KeyboardInterrupt())
    assert shell.main(["fail"]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN])
def test_termination_ends_a_command_in_good_order_also_in_the_background(
    monkeypatch, capsys, interrupts
):
    """A shell that starts it with ``&`` in a script has it ignore SIGINT; SIGTERM is left."""
    tidied = []

    def long(*_arguments, **_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            tidied.append(True)

    monkeypatch.setattr("autocompress.api.functions.search", long)
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        assert shell.main(["search", "--budget", "4x"]) == 128 + 15
        assert signal.getsignal(signal.SIGINT) == interrupts
    finally:
        signal.signal(signal.SIGINT, before)
    assert tidied
    assert "--resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_closed_pipe_is_no_error():
    program = "from autocompress.cli.main import main; import sys; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert run.stderr == ""


def test_json_has_no_numbers_that_json_lacks(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": "é"}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": "é"}}


def test_progress_goes_to_stderr(capsys):
    from rich.console import Console

    drawn = ConsoleProgress(Console(stderr=True))
    with drawn.task("Fitting [matrices]", 2) as advance:
        advance(2)
    drawn.note("one [line]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Fitting [matrices] ...\none [line]\n"


def test_off_a_terminal_a_long_task_says_how_far_it_is_and_ever_less_often(monkeypatch):
    from io import StringIO

    from rich.console import Console

    clock = iter(range(10_000))  # a second a call
    monkeypatch.setattr("autocompress.cli.output.time.monotonic", lambda: float(next(clock)))
    said = StringIO()
    with ConsoleProgress(Console(file=said)).task("Fitting [matrices]", 200) as advance:
        for _ in range(200):
            advance(1)
    lines = said.getvalue().splitlines()
    assert lines[:3] == [
        "Fitting [matrices] ...",
        "Fitting [matrices]: 5 of 200, about 3 min left",
        "Fitting [matrices]: 15 of 200, about 3 min left",
    ]
    assert lines[-2:] == [
        "Fitting [matrices]: 195 of 200, about 5 s left",
        "Fitting [matrices]: done in about 3 min",
    ]
    assert len(lines) == 8


def test_nested_bars_share_one_display(capsys):
    from rich.console import Console

    drawn = ConsoleProgress(Console(stderr=True, force_terminal=True))
    with drawn.task("outer", 2) as outer, drawn.task("inner") as inner:
        outer(1)
        inner(1)
    with drawn.task("later") as later:
        later(1)
    assert "outer" in capsys.readouterr().err


def test_libraries_are_quiet(tmp_path):
    program = (
        "from autocompress.cli.output import quieten_libraries\nquieten_libraries()\n"
        "import optuna, transformers\n"
        "optuna.create_study().optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=1)\n"
        "transformers.logging.get_logger('transformers.x').warning('noise')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("", "")
