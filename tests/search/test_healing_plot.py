from __future__ import annotations

import math

import pytest

from autocompress.errors import StorageError
from autocompress.search.healing_plot import (
    best_of,
    healing_figure,
    summary,
    write_healing_html,
    write_healing_png,
)

CHECKS = (
    {"step": 0, "loss": math.nan, "kl": 0.13, "nll": math.log(17.0)},
    {"step": 25, "loss": 0.2, "kl": 0.08, "nll": math.log(16.6)},
    {"step": 50, "loss": 0.1, "kl": 0.05, "nll": math.log(16.4)},
    {"step": 75, "loss": 0.09, "kl": 0.06, "nll": math.log(16.3)},
)


def test_what_is_kept_is_the_least_divergence():
    assert best_of(CHECKS)["step"] == 50
    line = summary(CHECKS)
    assert "KL 0.1300 to 0.0500" in line
    assert "perplexity 17.00 to 16.40" in line
    assert "step 50" in line


def test_every_check_is_drawn_where_it_has_a_figure():
    divergence, loss, kept = healing_figure(CHECKS).data
    assert list(divergence.x) == [0, 25, 50, 75]
    assert list(divergence.y) == [0.13, 0.08, 0.05, 0.06]
    assert list(loss.x) == [25, 50, 75]
    assert list(loss.y) == [0.2, 0.1, 0.09]
    assert (kept.x, kept.y) == ((50,), (0.05,))


@pytest.mark.parametrize("checks", [CHECKS, CHECKS[:1]], ids=["whole", "before the first step"])
def test_files(checks, tmp_path):
    page = write_healing_html(checks, tmp_path / "a" / "heal.html", "trial <7>").read_text()
    assert "trial &lt;7&gt;" in page
    assert "Plotly.newPlot" in page
    picture = write_healing_png(checks, tmp_path / "b" / "heal.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_unwritable_folder_is_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (write_healing_html, write_healing_png):
        with pytest.raises(StorageError, match=r"cannot write .*heal"):
            write(CHECKS, tmp_path / "file" / "heal")
