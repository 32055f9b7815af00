"""Where neither the package's folder nor a home can be written, and where an import fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import autocompress
from autocompress.numerics import compiled
from tests.api.tiny_folders import export_to

LOAD = """\
import sys
sys.path[:0] = [{package!r}]
import autocompress
assert autocompress.__file__.startswith({package!r})
model, tokenizer = autocompress.load({folder!r})
model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=1)
"""


def run(code: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **settings
    )


def test_an_export_loads_and_runs_where_nothing_can_be_written(tmp_path, tiny_llama):
    """Files stand where folders would have to be: no user may write there, root neither."""
    tiny = export_to(tmp_path, tiny_llama)
    package, home = tmp_path / "site", tmp_path / "home"
    source = Path(autocompress.__file__).parent
    shutil.copytree(source, package / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (package / source.name / "numerics" / "__pycache__").write_text("")
    home.write_text("")
    code = LOAD.format(package=str(package), folder=str(tiny.path))
    unset = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(code, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


@pytest.fixture
def nowhere(monkeypatch):
    """numba finds no place for a cache."""

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'twice': no locator available for file 'x'")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", njit)
    compiled._note.cache_clear()
    yield
    compiled._note.cache_clear()


def test_loops_compile_without_a_cache_and_say_so_once(nowhere, caplog):
    def twice(x: int) -> int:
        return 2 * x

    assert compiled.compiled(nogil=True)(twice)(3) == 6
    assert compiled.compiled(nogil=True)(twice)(4) == 8
    assert caplog.text.count("NUMBA_CACHE_DIR") == 1


def test_other_errors_of_numba_are_raised(monkeypatch):
    def fail(**_options):
        raise RuntimeError("something else")

    monkeypatch.setattr(compiled, "njit", fail)
    with pytest.raises(RuntimeError, match="something else"):
        compiled.compiled()(len)


def test_an_import_of_ours_that_fails_breaks_no_import_of_transformers_and_shows_itself():
    broken = (
        "import sys; sys.modules['autocompress.surgery.experts'] = None; import autocompress; "
        "from transformers import PreTrainedModel; print('imported'); autocompress.load('x')"
    )
    done = run(broken)
    assert "imported" in done.stdout
    assert "autocompress cannot be imported" in done.stderr
    assert "autocompress.surgery.experts" in done.stderr.splitlines()[-1]
    assert "Could not import module" not in done.stderr
