from __future__ import annotations

from autocompress.judging.by_role import StoredMatrix, by_role


def test_roles_are_added_up_the_largest_first_and_rare_forms_counted_together():
    matrices = [StoredMatrix("up", form, 100, 10, 50, 25) for form in "aaabbcde"]
    up, key = by_role([StoredMatrix("key", "keep", 40, 40, 20, 20), *matrices])
    assert (up.role, up.matrices, up.dense_bytes, up.bytes) == ("up", 8, 800, 80)
    assert (up.dense_parameters, up.parameters) == (400, 200)
    assert up.stored_as == "3 x a, 2 x b, 1 x c, 2 other"
    assert up.to_dict()["ratio"] == 10
    assert (key.role, key.stored_as) == ("key", "1 x keep")
