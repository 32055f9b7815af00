"""Which study a search works on: its settings, where it is kept, and what tells it from others."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigurationError, StudyError
from autocompress.evaluation.corpus import PARTS
from autocompress.requests.groups import StudyRequest
from autocompress.requests.verbs import SearchRequest
from autocompress.session.session import Session
from autocompress.space.space import Space
from autocompress.studies.storage import default_storage, storage_url
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import existing_study, to_record
from autocompress.units import Budget

REQUEST = "request"  # the key of a study's settings
# Of an identity: its hashes say what they hold.
NAMES = ("model", *(f"{part}_text" for part in PARTS))


def request_of(record: StudyRecord) -> SearchRequest:
    """What a study was started with."""
    return SearchRequest(**record.settings[REQUEST])


@dataclass(frozen=True)
class Destination:
    """Where a study is kept.

    Attributes:
        study: its name; made up from model and budget when left out.
        runs_dir: folder of run folders.
        storage: URL of Optuna's storage; a SQLite file in the run folder when left out.
    """

    study: str | None = None
    runs_dir: Path = Path("runs")
    storage: str | None = None

    @classmethod
    def of(cls, study: str | Path | StudyRecord | None, place: StudyRequest) -> Destination:
        """Where a study is that is given by its name or its record, which knows its folder."""
        if isinstance(study, StudyRecord):
            return cls(study.name, study.folder.parent, place.storage)
        name = None if study is None else str(study)
        return cls(name, Path(place.runs_dir), place.storage)

    def located(self) -> Destination:
        """The same with absolute paths."""
        runs_dir = self.runs_dir.expanduser().absolute()
        storage = None if self.storage is None else storage_url(self.storage)
        return replace(self, runs_dir=runs_dir, storage=storage)

    def url(self, name: str) -> str:
        """URL of the storage of a study."""
        return storage_url(self.storage) if self.storage else default_storage(self.runs_dir / name)


def check_request(request: SearchRequest) -> Budget:
    """Check what can be checked before the model is loaded, and read the budget.

    Raises:
        ConfigurationError: a budget or a name of a study that cannot be used.
    """
    named = request.study
    if named is not None and (not named.strip() or Path(named).name != named or named == ".."):
        wanted = "the name of a folder in --runs-dir"
        raise ConfigurationError("--study is no name", got=repr(named), wanted=wanted)
    return Budget.parse(request.budget, request.latency, request.quality)


def identity_of(request: SearchRequest, session: Session, space: Space) -> dict[str, Any]:
    """What determines the trials of a study: the settings, the model, the texts, the space."""
    plain = {
        name: getattr(request, name)
        for name in ("budget", "latency", "quality", "sampler", "seed", "device")
    }
    changed = request.changed()
    plain |= {name: changed[name] for name in ("unreached", "effort", "fit_all") if name in changed}
    contents = {"space": space.name, "space_content": repr(space)}
    return session.identity() | plain | contents | space.selection.to_dict()


def choose_study(
    request: SearchRequest, destination: Destination, identity: dict[str, Any]
) -> tuple[str, Any]:
    """Find the study to go on with, or a name for a new one (then the study is ``None``).

    Raises:
        StudyError: the study that was named was made with other settings; the message says which.
    """
    named = destination.study
    base = named or _default_name(request)
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        study = existing_study(name, destination.url(name))
        if study is None:
            return name, None
        found = to_record(study, destination.runs_dir / name).identity
        if _content(identity) == _content(found):
            return name, study
        differing = sorted(
            key for key in {*identity, *found} if identity.get(key) != found.get(key)
        )
        if named is not None:
            key = differing[0]
            raise StudyError(
                f"the study {name!r} exists and was made with other settings "
                f"({', '.join(differing)})",
                got=f"{key} = {identity.get(key)}",
                wanted=f"{key} = {found.get(key)}",
                hint=f"Go on with it by --resume {name} if only the command differs, "
                "put back what has changed (a space, a text), or name another with --study.",
            )
        number += 1


def _content(identity: dict[str, Any]) -> dict[str, Any]:
    """What of an identity determines trials: not where model and texts lie, but what they hold."""
    content = {key: value for key, value in identity.items() if key not in NAMES}
    texts = {
        key: value for key, value in identity.get("texts", {}).items() if not key.endswith("data")
    }
    return content | {"texts": texts}


def _default_name(request: SearchRequest) -> str:
    """Make up a readable name: model and targets."""
    model = Path(request.model).name if request.model else "demo"
    parts = [
        model,
        request.budget,
        request.latency,
        request.quality and f"q{request.quality}",
    ]
    if len([part for part in parts if part]) == 1:
        parts.append("front")
    text = "-".join(part for part in parts if part)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.").lower() or "study"
