"""``autocompress.profile``: calibrates a model and fits every option of a space."""

from __future__ import annotations

from pathlib import Path

from autocompress.calibration.menu import Menu
from autocompress.calibration.profile import Profile
from autocompress.progress import SILENT, Progress
from autocompress.records import Skipped
from autocompress.session.left_dense import check_unreached, unreached_of, within_reach
from autocompress.session.session import TextSettings, open_session, read_space
from autocompress.space.selection import EVERYTHING, Selection


def make_profile(
    model: str | None,
    texts: TextSettings,
    space_name: str,
    runs_dir: Path,
    *,
    selection: Selection = EVERYTHING,
    device: str = "cpu",
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    progress: Progress = SILENT,
    seed: int = 0,
    unreached: str = "keep",
) -> Profile:
    """Calibrate a model and fit every option of a space; what is cached is not computed again."""
    check_unreached(unreached)
    session = open_session(
        model,
        texts,
        runs_dir,
        device=device,
        compute_dtype=compute_dtype,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
        progress=progress,
        seed=seed,
        parts=("calibration",),
    )
    space, inventory = read_space(space_name, selection), session.workbench.inventory
    space.check(inventory.layers)
    space = within_reach(session, space, unreached)
    menu = session.menu(space, fit_all=True)
    left = tuple(
        Skipped(spec.name, "not selected") for spec in inventory.layers if selection.leaves(spec)
    )
    return Profile(
        session.loaded.source,
        space.name,
        Menu(tuple(each for each in menu.layers if not selection.leaves(each.spec))),
        inventory.skipped + left,
        session.texts.names["calibration"],
        len(session.calibration_ids),
        session.begin_token,
        unreached_of(session),
    )
