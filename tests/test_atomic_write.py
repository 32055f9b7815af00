from __future__ import annotations

import pytest

from autocompress.atomic_write import written_whole


def test_a_file_is_replaced_at_the_end_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    for content in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with written_whole(path) as temporary:
            temporary.write_text(content)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def write_half(path, error):
    with written_whole(path) as temporary:
        temporary.write_text("half of")
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("before")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file.json"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # whose block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_the_error_that_is_raised(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"), written_whole(tmp_path / "file" / "x") as temporary:
        temporary.write_text("never")
