"""What a search and its dry run begin with: everything checked, the model open, the study found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.driver.driver import Effort
from autocompress.driver.engines.choosing import check_engine
from autocompress.driver.finish import Finish
from autocompress.driver.study_choice import Destination, check_request, identity_of, request_of
from autocompress.healing.heal_plan import healing_text
from autocompress.requests.verbs import SearchRequest
from autocompress.session.left_dense import within_reach
from autocompress.session.session import Session, space_of
from autocompress.space.space import Space
from autocompress.studies.study import StudyRecord
from autocompress.surgery.stored_types import dtype_name
from autocompress.units import Budget

FindStudy = Callable[[SearchRequest, Destination, dict[str, Any]], tuple[str, Any]]


@dataclass(frozen=True)
class Opened:
    """A search that may begin.

    Attributes:
        request: what is asked, with absolute paths and the type that the model computes in.
        destination: where its study is kept.
        budget: the targets as they were typed.
        effort: how long to search, from now on.
        session: the model.
        whole: the search space as the request narrows it.
        space: the same, where matrices that no text reaches are not to choose.
        finish: what is done with the best plans; nothing with ``None``.
        identity: what tells its study from others.
        name: of the study.
        study: what was found of it; ``None`` for a new one.
    """

    request: SearchRequest
    destination: Destination
    budget: Budget
    effort: Effort
    session: Session
    whole: Space
    space: Space
    finish: Finish | None
    identity: dict[str, Any]
    name: str
    study: Any

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.destination.runs_dir / self.name

    @property
    def url(self) -> str:
        """URL of the study's storage."""
        return self.destination.url(self.name)


def open_search(
    request: SearchRequest,
    open_model: Callable[[SearchRequest], Session],
    find_study: FindStudy,
) -> Opened:
    """Check what can be checked before the model is loaded, then load it and check the rest.

    Args:
        request: what is asked.
        open_model: loads the model.
        find_study: finds the study to go on with; see ``choose_study``.

    Raises:
        ConfigurationError: a setting, text, model, space or study that cannot be used.
    """
    request = request.located()
    destination = Destination.of(request.study, request).located()
    budget = check_request(request)
    effort = Effort.of(request)
    check_engine(request)
    finish = Finish.of(request)
    whole = space_of(request)
    session = open_model(request)
    # Workers and resumed runs compute in what was found faster here, wherever they run.
    request = replace(request, compute_dtype=dtype_name(session.loaded.model.dtype))
    whole.check(session.workbench.inventory.layers)
    if finish is not None and finish.whole_front:
        # A bad text is refused before the search.
        healing_text(session, finish.data, finish.settings)
    identity = identity_of(request, session, whole)
    session.compare_texts("selection")
    space = within_reach(session, whole, request.unreached)
    name, study = find_study(request, destination, identity)
    return Opened(
        request,
        destination,
        budget,
        effort,
        session,
        whole,
        space,
        finish,
        identity,
        name,
        study,
    )


def going_on(request: SearchRequest, study: StudyRecord, storage: str | None) -> SearchRequest:
    """The request of a study that is resumed, with what a new one says of how long and on what.

    Args:
        request: the new one.
        study: the study as it is stored.
        storage: URL of its storage.
    """
    before = request_of(study)
    free = {name: getattr(request, name) for name in SearchRequest.free()}
    if request.trials is None:
        free["trials"] = study.settings.get("trials")
    return replace(
        before,
        **free | {"study": study.name, "storage": storage, "progress": request.progress},
    )
