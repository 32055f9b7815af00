from __future__ import annotations

import math

import pytest

from autocompress.errors import StorageError
from autocompress.pictures.healing_png import best_of, summary, write_healing_png
from autocompress.records import PERPLEXITY

CHECKS = (
    {"step": 0, "training_loss": math.nan, "divergence": 0.13, "loss": math.log(17.0)},
    {"step": 25, "training_loss": 0.2, "divergence": 0.08, "loss": math.log(16.6)},
    {"step": 50, "training_loss": 0.1, "divergence": 0.05, "loss": math.log(16.4)},
    {"step": 75, "training_loss": 0.09, "divergence": 0.06, "loss": math.log(16.3)},
)


def test_what_is_kept_is_the_least_divergence():
    assert best_of(CHECKS)["step"] == 50
    line = summary(CHECKS, PERPLEXITY)
    assert "KL 0.1300 to 0.0500" in line
    assert "perplexity 17.00 to 16.40" in line
    assert "step 50" in line


def test_a_picture_is_written(tmp_path):
    picture = write_healing_png(CHECKS, tmp_path / "a" / "heal.png", PERPLEXITY).read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_the_penalty_counts_for_what_is_kept():
    checks = [check | {"penalty": 0.001 * check["step"]} for check in CHECKS]
    assert best_of(checks)["step"] == 50
    checks[1]["penalty"] = 0.0
    checks[2]["penalty"] = 0.1
    assert best_of(checks)["step"] == 25


def test_figures_that_are_no_numbers_do_not_stop_it(tmp_path):
    broken = {"step": 0, "training_loss": math.nan, "divergence": math.inf, "loss": 800.0}
    path = write_healing_png((broken, *CHECKS[1:]), tmp_path / "heal.png", PERPLEXITY)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not write_healing_png((broken,), tmp_path / "none.png", PERPLEXITY).exists()


def test_unwritable_folder_is_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*heal"):
        write_healing_png(CHECKS, tmp_path / "file" / "heal", PERPLEXITY)
