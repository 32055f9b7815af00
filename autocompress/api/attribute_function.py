"""``autocompress.attribute``, with the words of the command line."""

from __future__ import annotations

from autocompress.api.attributing import Attributed, attribute_plan, attribute_trial
from autocompress.api.exported_folder import folder_of, open_folder, refuse_options
from autocompress.driver.study_choice import Destination
from autocompress.errors import StorageError
from autocompress.requests.base import names_in, verb
from autocompress.requests.verbs import AttributeRequest
from autocompress.tracking.attribution_run import log_attribution
from autocompress.tracking.mlflow_mirror import check_tracking


@verb(AttributeRequest)
def attribute(request: AttributeRequest) -> Attributed:
    """Say what each group of matrices of a compressed model saves and harms.

    One group at a time is put back to dense, and the rest is scored again on the selection text.

    Raises:
        AutocompressError: and those below it; the message is one paragraph that says what to do.
    """
    by = names_in(request.by)
    folder = folder_of(request.source)
    if folder is not None:
        refuse_options(f"the folder {folder}", **request.of_a_study())
        opened = open_folder(folder, request)
        return attribute_plan(opened.session, opened.compressed, str(folder), by=by)
    refuse_options("a study, which has its own", **request.of_a_folder(), data=request.data)
    check_tracking(request.track, request.tracking_uri)
    found, study, of = attribute_trial(
        Destination.of(request.source, request),
        trial=str(request.trial or "best"),
        by=by,
        progress=request.progress,
    )
    if request.track:
        try:
            place = log_attribution(study, of, found.attribution, request.tracking_uri)
        except StorageError as error:
            if request.tracking_uri is not None:  # only a store that was asked for must be there
                raise
            request.progress.note(str(error))
        else:
            request.progress.note(f"Logged to {place}")
    return found
