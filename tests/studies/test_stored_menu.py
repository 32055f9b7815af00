from __future__ import annotations

import json

import pytest

from autocompress.calibration.priced_menu import Price, PricedMenu
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.errors import StorageError, StudyError
from autocompress.studies.stored_menu import MENU as FILE
from autocompress.studies.stored_menu import keep_menu, read_menu
from autocompress.units import Limits
from tests.driver.fake_search import DENSE_BYTES, INVENTORY, SPECS, header_of
from tests.driver.test_proposer import MIXED

LIMITS = Limits(DENSE_BYTES // 6, None)
GROUP = (SPECS[0].name, SPECS[2].name)


@pytest.fixture
def study(tmp_path):
    return header_of(tmp_path, LIMITS)


@pytest.fixture
def live():
    made = Proposer(MIXED, INVENTORY, LIMITS, (GROUP,))
    made.priced = PricedMenu(
        {SPECS[1].name: (Price(0.01, 0.05), Price(0.1, 0.07)), SPECS[3].name: (Price(0.1, 1.0),)}
    )
    return made


def test_the_stored_menu_makes_the_plans_of_the_live_one(study, live):
    assert keep_menu(study.folder, live.stored) == study.folder / FILE
    stored = Proposer.of_stored(read_menu(study), study.limits)
    assert (stored.targets, stored.groups, stored.priced) == (
        live.targets,
        live.groups,
        live.priced,
    )
    assert stored.menu == live.menu
    for target in live.targets:
        for knobs in (Knobs(), PREDICTED, Knobs(factorised=16.0, slope=0.5, least_bits=3)):
            assert stored.allocated(knobs, target) == live.allocated(knobs, target)


def test_writing_it_again_replaces_it_and_leaves_nothing_beside_it(study, live):
    keep_menu(study.folder, live.stored)
    live.priced = PricedMenu()
    keep_menu(study.folder, live.stored)
    assert read_menu(study).priced == PricedMenu()
    assert [path.name for path in study.folder.iterdir()] == [FILE]


def test_no_menu_says_what_writes_one(study):
    with pytest.raises(StudyError, match="no menu") as caught:
        read_menu(study)
    assert f"--resume {study.name}" in str(caught.value)


def break_version(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 0}))


def cut_off(path):
    path.write_text(path.read_text()[:-40])


def other_layers(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": {}}))


def no_mapping(path):
    path.write_text("[1, 2]")


@pytest.mark.parametrize("loss_increase", [break_version, cut_off, other_layers, no_mapping])
def test_an_old_or_damaged_menu_says_what_writes_it_again(study, live, loss_increase):
    loss_increase(keep_menu(study.folder, live.stored))
    with pytest.raises(StudyError, match="no menu that can be read") as caught:
        read_menu(study)
    assert f"--resume {study.name}" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path, live):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        keep_menu(tmp_path / "file", live.stored)
