"""``autocompress.profile``: calibrates a model and fits every option of a space."""

from __future__ import annotations

from autocompress.calibration.menu import Menu
from autocompress.calibration.profile import Profile
from autocompress.driver.study_session import open_for_target
from autocompress.records import Skipped
from autocompress.requests.verbs import ProfileRequest
from autocompress.session.left_dense import unreached_of, within_reach
from autocompress.session.session import space_of


def make_profile(request: ProfileRequest) -> Profile:
    """Calibrate a model and fit every option of a space; what is cached is not computed again."""
    session = open_for_target(request, parts=("calibration",))
    space, inventory = space_of(request), session.workbench.inventory
    space.check(inventory.layers)
    space = within_reach(session, space, request.unreached)
    menu = session.menu(space, fit_all=True)
    leaves = space.selection.leaves
    left = tuple(Skipped(spec.name, "not selected") for spec in inventory.layers if leaves(spec))
    return Profile(
        session.loaded.source,
        space.name,
        Menu(tuple(each for each in menu.layers if not leaves(each.spec))),
        inventory.skipped + left,
        session.texts.names["calibration"],
        len(session.calibration_ids),
        session.begin_token,
        unreached_of(session),
    )
