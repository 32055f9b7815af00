"""Makes a command of a request: its options, their help, and the request that was typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar

import typer

from autocompress.cli.output import ConsoleProgress, quieten_libraries
from autocompress.requests.base import Request, Typed, flag_of, options_of

CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        help="Afterwards, remove from the cache what was least recently used, down to this size, "
        "such as 5GB.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def is_typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, be it with its usual value."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


R = TypeVar("R", bound=Request)


def takes(request: type[R]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command be given what was typed as one request, and its own options beside it.

    Args:
        request: the class of the request. Its settings become options, but those that the command
            has of its own by the same name.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        theirs = inspect.signature(command, eval_str=True).parameters.values()
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in theirs][1:]
        mine = {each.name for each in own}
        usual = {each.name: each.default for each in fields(request)}
        offered = {name: told for name, told in options_of(request).items() if name not in mine}
        told_of = {"progress"} & usual.keys()
        parameters = [_parameter(name, usual[name], told) for name, told in offered.items()]

        def run(**typed: Any) -> None:
            quieten_libraries()
            asked = {name: typed.pop(name) for name in offered}
            given = {name: value for name, value in asked.items() if value != _typed(usual[name])}
            command(request(**given, **{name: ConsoleProgress() for name in told_of}), **typed)

        ordered = sorted((*parameters, *own), key=_is_argument, reverse=True)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in ordered}
        return run

    return decorated


def _parameter(name: str, default: Any, told: Typed) -> inspect.Parameter:
    usual = _typed(default)
    kind = told.typed | None if usual is None else told.typed
    shown: Any = told.shown or usual is not None
    if told.argument:
        typed: Any = typer.Argument(metavar=told.metavar, help=told.help, show_default=False)
    else:
        flag = told.flags or flag_of(name)
        if default is True:
            flag = f"{flag}/{flag_of(f'no_{name}')}"
        typed = typer.Option(flag, help=told.help, metavar=told.metavar, show_default=shown)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=usual,
        annotation=Annotated[kind, typed],
    )


def _typed(default: Any) -> Any:
    """A default as the command line gives it."""
    if default is MISSING:
        return inspect.Parameter.empty
    return ",".join(default) or None if isinstance(default, tuple) else default


def _is_argument(parameter: inspect.Parameter) -> bool:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(each, typer.models.ArgumentInfo) for each in metadata)
