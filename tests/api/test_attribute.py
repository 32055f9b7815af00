from __future__ import annotations

import math

import pytest
import yaml

import autocompress
from autocompress.api.attributing import attribute_plan, attribute_trial
from autocompress.api.exported_folder import open_folder
from autocompress.deploy.documents import RECIPE
from autocompress.driver.study_choice import Destination
from autocompress.driver.study_session import open_study_session
from autocompress.errors import (
    AutocompressError,
    ConfigurationError,
    ModelError,
    StorageError,
    StudyError,
)
from autocompress.evaluation.scoring import score
from autocompress.judging.picking import pick
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.requests.groups import FolderRequest
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.inventory import stored_tensors_of
from tests.deploy.exporting import export_checkpoint


@pytest.fixture(scope="module")
def session(record):
    return open_study_session(record, record.folder.parent)


@pytest.fixture(scope="module")
def folder(record, session, tmp_path_factory):
    """The best trial as a folder."""
    out = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(session.loaded, pick(record).plan, session.builder.build, out)
    return out


@pytest.fixture
def destination(record):
    return Destination(record.name, record.folder.parent)


def test_a_trial_is_attributed_on_the_text_it_was_selected_on(record, destination):
    found, study, chosen = attribute_trial(destination, by=["part"])
    assert (study.name, chosen.number) == (record.name, pick(record).number)
    assert found.source == f"trial {chosen.number} of study {record.name}"
    total, report = found.attribution.total, found.report
    dense = record.dense_selection.figure
    assert total.increase == pytest.approx(math.log(chosen.selection.figure / dense), abs=1e-6)
    assert total.divergence == pytest.approx(chosen.selection.divergence, rel=1e-4)
    assert report.divergence == chosen.report.divergence
    assert found.attribution.bytes_saved == record.dense_bytes - chosen.bytes
    parts = {each.group: each for each in found.attribution.by("part")}
    assert set(parts) <= {"attention", "mlp", "embedding"}
    assert all(
        0 < each.lost.divergence < total.divergence
        for each in parts.values()
        if each.saved_share > 0.1
    )
    assert found.to_dict()["groups"][0]["lost"].keys() == {"increase", "kl"}


def test_the_folder_of_a_trial_says_the_same(record, destination, folder, workplace, monkeypatch):
    """And needs no layer fitted, for they are in the folder."""
    known, _, _ = attribute_trial(destination, by=["part"])
    monkeypatch.setattr("autocompress.calibration.builder.LayerBuilder.build", None)
    found = autocompress.attribute(
        folder, by=["part"], data=str(workplace / "text.txt"), runs_dir=record.folder.parent
    )
    assert found.attribution == known.attribution
    assert (found.plan.hash, found.bytes) == (known.plan.hash, known.bytes)
    assert found.report.divergence == pytest.approx(known.report.divergence, rel=1e-4)


def test_stored_weights_take_the_place_of_fitted_ones(record, session):
    plan = pick(record).plan
    with session.workbench.applied(plan, session.builder.build) as model:
        stored = {name: tensor.clone() for name, tensor in stored_tensors_of(model).items()}
    norm = "model.norm.weight"
    numbers = {norm: 1.5 * stored[norm]}
    found = attribute_plan(session, Compressed(plan, numbers), "healed", by=["layer"])
    text = session.scored_text("selection")
    with session.workbench.applied(Compressed(plan, numbers), session.builder.build) as model:
        wanted = score(model, text.windows, text.teacher)
    assert found.attribution.total.divergence == pytest.approx(
        wanted.divergence, rel=1e-5
    )  # unpacked once
    first = found.attribution.by("layer")[0]
    rest = Plan.of({**plan, first.group: Keep()})
    with session.workbench.applied(Compressed(rest, numbers), session.builder.build) as model:
        alone = score(model, text.windows, text.teacher).divergence
    assert first.without.divergence == pytest.approx(alone, rel=1e-5)


def test_bad_requests_are_refused_before_the_model_is_read(record, destination, monkeypatch):
    monkeypatch.setattr("autocompress.api.attributing.open_study_session", None)
    with pytest.raises(ConfigurationError, match="--by"):
        attribute_trial(destination, by=["colour"])
    with pytest.raises(StudyError, match="no trial 99"):
        attribute_trial(destination, trial="99")


def test_folders_that_will_not_do(record, folder, tmp_path):
    runs = record.folder.parent
    with pytest.raises(AutocompressError, match="recipe"):
        open_folder(tmp_path, FolderRequest(runs_dir=runs))
    recipe = yaml.safe_load((folder / RECIPE).read_text())
    (tmp_path / RECIPE).write_text(yaml.safe_dump(recipe | {"fingerprint": "0" * 16}))
    with pytest.raises(StorageError, match=r"config\.json is not"):
        open_folder(tmp_path, FolderRequest(data="bundled", runs_dir=runs))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match="is not the model that"):
        open_folder(tmp_path, FolderRequest(data="bundled", runs_dir=runs))


def test_a_healed_trial_is_attributed_with_its_own_numbers(destination, session, monkeypatch):
    """Here a halved norm, which harms whichever matrices are dense."""
    plain, study, chosen = attribute_trial(destination, by=["part"])
    norm = session.loaded.model.get_parameter("model.norm.weight")
    asked = []

    def with_half(folder, trial):
        asked.append((folder, trial))
        return Compressed(trial.plan, {"model.norm.weight": 0.5 * norm})

    monkeypatch.setattr("autocompress.api.attributing.compressed_of", with_half)
    healed, _, _ = attribute_trial(destination, by=["part"])
    assert asked == [(study.folder, chosen)]
    assert healed.attribution.total.divergence > 1.1 * plain.attribution.total.divergence
    assert all(each.without.divergence > 0.01 for each in healed.attribution.contributions)
