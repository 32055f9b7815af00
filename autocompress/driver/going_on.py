"""What may be said beside ``resume``: a study goes on by its own settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from autocompress.driver.study_choice import request_of
from autocompress.errors import ConfigurationError
from autocompress.paths import located, shown
from autocompress.requests.base import flag_of
from autocompress.requests.verbs import SearchRequest
from autocompress.space.selection import Selection
from autocompress.studies.study import StudyRecord

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
    own = request_of(study).to_dict() | {"study": None}
    for name, value in given.items():
        if name in SearchRequest.free() or (name in own and _same(name, value, own[name])):
            continue
        if name == "study":
            raise ConfigurationError(
                f"--resume {study.name} and --study name a study both",
                got=f"--study {value}",
                hint="Leave one of them out.",
            )
        raise ConfigurationError(
            f"--resume {study.name} goes on by the settings of that study, and "
            f"{flag_of(name)} is another",
            got=_value(value),
            wanted=_value(own[name]) if name in own else "it left out",
            hint=_instead(study, name, value, own),
        )


def _same(name: str, value: Any, own: Any) -> bool:
    """Whether a value is that of the study, which keeps local paths absolute."""
    if name in SELECTION:
        values = (getattr(Selection.of(**{name: each}), name) for each in (value, own))
        return len(set(values)) == 1
    return bool(value == own or (isinstance(value, str) and located(value) == own))


def _value(value: Any) -> str:
    if value is None or value in ((), []):
        return "it left out"
    return ",".join(value) if isinstance(value, tuple | list) else shown(str(value))


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
    usual, free = SearchRequest().to_dict(), SearchRequest.free()
    words = ["autocompress", "search"]
    for name, value in settings.items():
        if name in free or value is None or value == usual.get(name):
            continue
        if isinstance(value, bool):
            words.append(flag_of(name if value else f"no_{name}"))
        else:
            words += [flag_of(name), _value(value)]
    return shlex.join(words)
