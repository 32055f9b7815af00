"""How a request is declared: each setting once, with type, default, check and help."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ParamSpec, Protocol, TypeVar, cast, dataclass_transform, overload

from autocompress.errors import ConfigurationError

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")
OPTION = "option"  # the key in a field's metadata


@dataclass(frozen=True)
class Allowed:
    """What a setting may be.

    Attributes:
        holds: whether a value may stand.
        wanted: what may, in words.
        trouble: what is wrong with another; ``{}`` is the option.
    """

    holds: Callable[[Any], bool]
    wanted: str
    trouble: str = "{} is out of range"


def at_least(least: float) -> Allowed:
    """Check that a number is not too low."""
    return Allowed(lambda value: value >= least, f"at least {least}", "{} is too low")


def any_of(*names: str) -> Allowed:
    """Check that a value is one of some names."""
    return Allowed(lambda value: value in names, ", ".join(names), "unknown {}")


@dataclass(frozen=True)
class Typed:
    """How a setting is typed on the command line.

    Attributes:
        help: what it does, for ``--help`` and the docstring of the Python function.
        typed: type of what is typed.
        check: what it may be; ``None`` for anything.
        flags: names on the command line, where they are not the setting's own.
        metavar: what ``--help`` puts in the place of the value.
        shown: what ``--help`` says of the default, where that is made up later.
        argument: whether it is typed without a name.
        free: whether it determines no trial of a study.
    """

    help: str
    typed: Any = str
    check: Allowed | None = None
    flags: str = ""
    metavar: str | None = None
    shown: str = ""
    argument: bool = False
    free: bool = False


def option(
    *,
    help: str,
    default: Any = ...,
    kw_only: bool = True,
    **more: Any,
) -> Any:
    """Declare a setting that the command line offers too.

    Args:
        help: see ``Typed``.
        default: what it is when left out; ``...`` where it must not be.
        kw_only: whether Python takes it by its name only.
        more: further attributes of ``Typed``. ``typed`` is the type of the default when left out,
            and text where there is none.
    """
    usual = str if default in (None, ...) else type(default)
    metadata = {OPTION: Typed(help, **{"typed": usual, **more})}
    if default is ...:
        return field(kw_only=kw_only, metadata=metadata)
    return field(default=default, kw_only=kw_only, metadata=metadata)


def setting(*, help: str, default: Any = None, kw_only: bool = True) -> Any:
    """Declare a setting that Python takes alone."""
    metadata = {"help": help}
    return field(default=default, kw_only=kw_only, metadata=metadata, compare=False, repr=False)


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(option, setting, field)
)
def request(cls: type[T]) -> type[T]:
    """Make a class a frozen record of settings, which are given by their names."""
    return dataclass(frozen=True, kw_only=True)(cls)


@request
class Request:
    """Settings, checked when they are put together.

    Raises:
        ConfigurationError: one cannot be what it is.
    """

    def __post_init__(self) -> None:
        for name, told in options_of(type(self)).items():
            value = getattr(self, name)
            if told.check is None or value is None or told.check.holds(value):
                continue
            near = difflib.get_close_matches(str(value), told.check.wanted.split(", "), n=1)
            raise ConfigurationError(
                told.check.trouble.format(flag_of(name)),
                got=repr(value) if isinstance(value, str) else value,
                wanted=told.check.wanted,
                hint=f"Did you mean {near[0]}?" if near else "",
            )

    @classmethod
    def free(cls) -> frozenset[str]:
        """The settings that determine no trial of a study."""
        return frozenset(name for name, told in options_of(cls).items() if told.free)

    def to_dict(self) -> dict[str, Any]:
        """The settings that the command line offers as well, for JSON."""
        values = {name: getattr(self, name) for name in options_of(type(self))}
        return {name: value if _is_plain(value) else str(value) for name, value in values.items()}

    def into(self, wanted: type[T], **other: Any) -> T:
        """Those of the settings that another request takes too.

        Args:
            wanted: its class.
            other: settings that take the place of these.
        """
        own = {each.name for each in fields(self)}
        names = own & {each.name for each in fields(cast(Any, wanted)) if each.init}
        return wanted(**{name: getattr(self, name) for name in names} | other)

    def changed(self) -> dict[str, Any]:
        """The settings that are not the usual ones."""
        usual = {each.name: each.default for each in fields(self)}
        own = {name: getattr(self, name) for name in options_of(type(self))}
        return {name: value for name, value in own.items() if value != usual[name]}


def options_of(requested: type[Request]) -> Mapping[str, Typed]:
    """The settings of a request that can be typed, its own before those of its bases."""
    known = {each.name: each for each in fields(requested)}
    names = dict.fromkeys(
        name for cls in requested.__mro__ for name in inspect.get_annotations(cls)
    )
    told = {name: known[name].metadata.get(OPTION) for name in names if name in known}
    return MappingProxyType({name: each for name, each in told.items() if each is not None})


def flag_of(name: str) -> str:
    """A setting as it is typed."""
    return f"--{name.replace('_', '-')}"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | list | tuple | None)


class Verb(Protocol[P, T_contra, T_co]):
    """A function of the Python API: it takes settings by their names, or a request."""

    @overload
    def __call__(self, request: T_contra, /) -> T_co: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


def verb(requested: Callable[P, T]) -> Callable[[Callable[[T], T_co]], Verb[P, T, T_co]]:
    """Let a function that takes a request be called with settings by their names, too.

    Its signature and the arguments in its docstring are those of the request.

    Args:
        requested: the class of the request.
    """
    kind = cast(type[Request], requested)

    def decorated(run: Callable[[T], T_co]) -> Verb[P, T, T_co]:
        @functools.wraps(run)
        def called(*args: Any, **kwargs: Any) -> T_co:
            if args and isinstance(args[0], kind):
                given = cast(T, replace(args[0], **kwargs))
            else:
                given = cast(Callable[..., T], requested)(*args, **kwargs)
            return run(given)

        del called.__wrapped__  # else inspect looks at run's
        signature = inspect.signature(requested)
        called.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(run).return_annotation
        )
        called.__doc__ = _with_arguments(inspect.getdoc(run) or "", kind)
        return cast(Verb[P, T, T_co], called)

    return decorated


def _with_arguments(text: str, kind: type[Request]) -> str:
    helps = {
        each.name: told.help if (told := each.metadata.get(OPTION)) else each.metadata.get("help")
        for each in sorted(fields(kind), key=lambda each: bool(each.kw_only))
    }
    said = "".join(f"    {name}: {what}\n" for name, what in helps.items() if what)
    head, heading, rest = text.partition("\nReturns:\n")
    if not heading:
        head, heading, rest = text.partition("\nRaises:\n")
    return f"{head.rstrip()}\n\nArgs:\n{said}{heading}{rest}"


def names_in(words: str | Sequence[str]) -> tuple[str, ...]:
    """The names that somebody lists, with commas between them or one by one."""
    listed = [words] if isinstance(words, str) else words
    names = (name.strip() for each in listed for name in str(each).split(","))
    return tuple(name for name in names if name)
