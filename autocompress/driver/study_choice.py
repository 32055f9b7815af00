"""Which study a search works on: its settings, where it is kept, and what tells it from others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.driver.proposing.knob_sampler import SAMPLERS
from autocompress.errors import ConfigurationError, StudyError
from autocompress.evaluation.corpus import PARTS
from autocompress.paths import located
from autocompress.progress import SILENT, Progress
from autocompress.session.efforts import NORMAL, effort_of
from autocompress.session.left_dense import KEEP, check_unreached
from autocompress.session.session import Session, TextSettings, open_session, read_space
from autocompress.space.selection import EVERYTHING, Selection
from autocompress.space.space import Space
from autocompress.studies.storage import default_storage, storage_url
from autocompress.studies.study import StudyRecord
from autocompress.studies.study_store import existing_study, to_record
from autocompress.surgery.loading import BUNDLED_MODEL
from autocompress.units import Budget

# Of an identity: its hashes say what they hold.
NAMES = ("model", *(f"{part}_text" for part in PARTS))


@dataclass(frozen=True)
class SearchSettings:
    """What determines the trials of a study, named as the options of ``autocompress search``."""

    model: str | None = None
    budget: str | None = None
    latency: str | None = None
    space: str = "default"
    sampler: str = "auto"
    seed: int = 0
    device: str = "cpu"
    compute_dtype: str | None = None
    trust_remote_code: bool = False
    texts: TextSettings = field(default_factory=TextSettings)
    selection: Selection = EVERYTHING
    quality: str | None = None
    dequantize: bool = False
    unreached: str = KEEP
    effort: str = NORMAL
    fit_all: bool = False

    @classmethod
    def of_study(cls, record: StudyRecord) -> SearchSettings:
        """The settings that a study was started with."""
        arguments = dict(record.settings["arguments"])
        selection = Selection.of(**arguments.get("selection", {}))
        texts = TextSettings(**arguments["texts"])
        return cls(**arguments | {"texts": texts, "selection": selection})

    def read_space(self) -> Space:
        """Load the search space, narrowed to what was selected."""
        return read_space(self.space, self.selection)

    def located(self) -> SearchSettings:
        """The same with the paths of local files and folders made absolute."""
        return replace(
            self,
            model=located(self.model, Path.is_dir, but=(BUNDLED_MODEL,)),
            space=located(self.space, Path.is_file) or self.space,
            texts=self.texts.located(),
        )

    def open(self, runs_dir: Path, progress: Progress = SILENT) -> Session:
        """Load the model and make everything ready; see ``open_session``."""
        return open_session(
            self.model,
            self.texts,
            runs_dir,
            device=self.device,
            compute_dtype=self.compute_dtype,
            trust_remote_code=self.trust_remote_code,
            dequantize=self.dequantize,
            progress=progress,
            seed=self.seed,
        )


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
    def of(
        cls, study: str | StudyRecord | None, runs_dir: str | Path, storage: str | None
    ) -> Destination:
        """Where a study is that is given by its name or its record, which knows its folder."""
        if isinstance(study, StudyRecord):
            return cls(study.name, study.folder.parent, storage)
        return cls(study, Path(runs_dir), storage)

    def located(self) -> Destination:
        """The same with absolute paths."""
        runs_dir = self.runs_dir.expanduser().absolute()
        storage = None if self.storage is None else storage_url(self.storage)
        return replace(self, runs_dir=runs_dir, storage=storage)

    def url(self, name: str) -> str:
        """URL of the storage of a study."""
        return storage_url(self.storage) if self.storage else default_storage(self.runs_dir / name)


def check_settings(settings: SearchSettings, destination: Destination) -> Budget:
    """Check what can be checked before the model is loaded, and read the budget.

    Raises:
        ConfigurationError: a budget, a name of a study or a sampler that cannot be used.
    """
    budget = Budget.parse(settings.budget, settings.latency, settings.quality)
    check_unreached(settings.unreached)
    effort_of(settings.effort)
    named = destination.study
    if named is not None and (not named.strip() or Path(named).name != named or named == ".."):
        wanted = "the name of a folder in --runs-dir"
        raise ConfigurationError("--study is no name", got=repr(named), wanted=wanted)
    if settings.sampler not in SAMPLERS:
        raise ConfigurationError(
            "unknown sampler", got=repr(settings.sampler), wanted=", ".join(SAMPLERS)
        )
    return budget


def identity_of(settings: SearchSettings, session: Session, space: Space) -> dict[str, Any]:
    """What determines the trials of a study: the settings, the model, the texts, the space."""
    plain = {
        name: getattr(settings, name)
        for name in ("budget", "latency", "quality", "sampler", "seed", "device")
    }
    usual = SearchSettings()
    for name in ("unreached", "effort", "fit_all"):
        if getattr(settings, name) != getattr(usual, name):
            plain[name] = getattr(settings, name)
    narrowed = settings.selection.to_dict()
    contents = {"space": space.name, "space_content": repr(space)}
    return session.identity() | plain | contents | narrowed


def choose_study(
    settings: SearchSettings, destination: Destination, identity: dict[str, Any]
) -> tuple[str, Any]:
    """Find the study to go on with, or a name for a new one (then the study is ``None``).

    Raises:
        StudyError: the study that was named was made with other settings; the message says which.
    """
    named = destination.study
    base = named or _default_name(settings)
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        study = existing_study(name, destination.url(name))
        if study is None:
            return name, None
        found = to_record(study, destination.runs_dir / name).settings.get("identity", {})
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


def _default_name(settings: SearchSettings) -> str:
    """Make up a readable name: model and targets."""
    model = Path(settings.model).name if settings.model else "demo"
    parts = [
        model,
        settings.budget,
        settings.latency,
        settings.quality and f"q{settings.quality}",
    ]
    if len([part for part in parts if part]) == 1:
        parts.append("front")
    text = "-".join(part for part in parts if part)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.").lower() or "study"
