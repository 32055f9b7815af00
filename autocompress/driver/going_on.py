"""What may be said beside ``resume``: a study goes on by its own settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from autocompress.driver.study_choice import SearchSettings
from autocompress.errors import ConfigurationError
from autocompress.paths import located, shown
from autocompress.session.session import TextSettings
from autocompress.space.selection import Selection
from autocompress.studies.study import StudyRecord

# Arguments of ``search`` that determine no trial: how long, on what, to where.
FREE = frozenset(
    {
        *("trials", "time", "patience", "engine", "workers", "address", "gpus_per_trial"),
        *("heal", "heal_data", "refit", "resume", "runs_dir", "storage", "track", "tracking_uri"),
        "progress",
    }
)

SELECTION = tuple(each.name for each in fields(Selection))


def refuse_other_settings(study: StudyRecord, given: Mapping[str, Any]) -> None:
    """Refuse settings that a study which is resumed would not go by.

    Args:
        study: as it is stored.
        given: arguments of ``search`` that were given beside ``resume``; those that determine no
            trial, and those that are as the study has them, pass.

    Raises:
        ConfigurationError: one is neither; the message says what to type instead.
    """
    own = _by_name(SearchSettings.of_study(study))
    for name, value in given.items():
        if name in FREE or (name in own and _same(name, value, own[name])):
            continue
        if name == "study":
            raise ConfigurationError(
                f"--resume {study.name} and --study name a study both",
                got=f"--study {value}",
                hint="Leave one of them out.",
            )
        raise ConfigurationError(
            f"--resume {study.name} goes on by the settings of that study, and "
            f"{_option(name)} is another",
            got=_value(value),
            wanted=_value(own[name]) if name in own else "it left out",
            hint=_instead(study, name, value, own),
        )


def given_settings(settings: SearchSettings) -> dict[str, Any]:
    """Settings that are not the usual ones, by their names as arguments of ``search``."""
    usual = _by_name(SearchSettings())
    return {name: value for name, value in _by_name(settings).items() if value != usual[name]}


def _by_name(settings: SearchSettings) -> dict[str, Any]:
    groups: dict[str, TextSettings | Selection] = {
        "texts": settings.texts,
        "selection": settings.selection,
    }
    own = {each.name: getattr(settings, each.name) for each in fields(settings)}
    own = {name: value for name, value in own.items() if name not in groups}
    for group in groups.values():
        own |= {each.name: getattr(group, each.name) for each in fields(group)}
    return own


def _same(name: str, value: Any, own: Any) -> bool:
    """Whether a value is that of the study, which keeps local paths absolute."""
    if name in SELECTION:
        return bool(getattr(Selection.of(**{name: value}), name) == own)
    return bool(value == own or (isinstance(value, str) and located(value) == own))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(value: Any) -> str:
    if value is None or value == ():
        return "it left out"
    return ",".join(value) if isinstance(value, tuple) else shown(str(value))


def _instead(study: StudyRecord, name: str, value: Any, own: Mapping[str, Any]) -> str:
    """What to type for what was probably meant."""
    measured = {
        "budget": f"A plan for another budget, from what the study measured: autocompress front "
        f"{shlex.quote(study.name)} --budget {value}. ",
        "latency": f"The trials within another limit: autocompress front "
        f"{shlex.quote(study.name)} --max-latency {value}. ",
    }
    return f"{measured.get(name, '')}Another search: {_command({**own, name: value})}."


def _command(settings: Mapping[str, Any]) -> str:
    """The command of a search with these settings, as far as they are not the usual ones."""
    usual = _by_name(SearchSettings())
    words = ["autocompress", "search"]
    for name, value in settings.items():
        if value is None or (name in usual and value == usual[name]):
            continue
        if isinstance(value, bool):
            words.append(_option(name if value else f"no_{name}"))
        else:
            words += [_option(name), _value(value)]
    return shlex.join(words)
