"""How deep the calls of a trial go, from the command to the layer that is read from the cache."""

from __future__ import annotations

import sys

import autocompress
from autocompress.calibration.builder import LayerBuilder
from tests.api.searches import write_inputs

MOST = 12  # calls by the project's own functions, the command's included


def own_calls():
    """The project's functions that are on the stack, wrappers of decorators left out."""
    frame, calls = sys._getframe(2), []
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("autocompress.") and module != "autocompress.requests.base":
            calls.append(f"{module}.{frame.f_code.co_name}")
        frame = frame.f_back
    return calls


def test_a_trial_is_twelve_calls_deep_at_most(tmp_path, monkeypatch):
    seen, build = [], LayerBuilder.build

    def watched(self, name, method):
        calls = own_calls()
        if any(call == "autocompress.evaluation.evaluator.run" for call in calls):
            seen.append([f"{LayerBuilder.__module__}.build", *calls])
        return build(self, name, method)

    monkeypatch.setattr(LayerBuilder, "build", watched)
    autocompress.search(
        **write_inputs(tmp_path),
        budget="8x",
        trials=2,
        refit=False,
        track=False,
        runs_dir=tmp_path / "runs",
    )
    assert seen
    deepest = max(seen, key=len)
    # and main and the command above
    assert len(deepest) + 2 <= MOST, "\n".join(deepest)
