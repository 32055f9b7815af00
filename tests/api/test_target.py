from __future__ import annotations

from tests.notes import Notes

LAYERS = {"model.embed_tokens": {"method": "svd", "rank": 8}}


def test_penalties_of_a_recipe_that_is_not_healed_are_said_to_do_nothing(run, tiny_llama):
    plain, penalised = Notes(), Notes()
    recipe = {"version": 1, "layers": LAYERS}
    run(tiny_llama, recipe, measure=False, progress=plain)
    penalty = [{"layers": "*", "kind": "shannon"}]
    run(tiny_llama, recipe | {"penalty": penalty}, measure=False, progress=penalised)
    (note,) = (note for note in penalised.said if note not in plain.said)
    assert "heal FOLDER --penalty" in note
