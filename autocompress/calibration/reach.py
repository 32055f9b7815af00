"""Finds the matrices that the calibration text never reaches: no loss increase of them is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.collection import siblings_of
from autocompress.calibration.gram_sums import input_of, with_gradient
from autocompress.calibration.statistics import gradients_from_the_embeddings
from autocompress.evaluation.objectives import objective_for
from autocompress.records import LayerSpec
from autocompress.surgery.placement import home_of
from autocompress.surgery.without_cache import without_cache

FIRST_TOKENS = 32  # of the text, on which gradients are followed; most models are done after them
NO_INPUT = "not one input vector on the calibration text"
NO_GRADIENT = "its outputs do not change the predictions on the calibration text"


def find_unreached(
    model: nn.Module, specs: Sequence[LayerSpec], windows: Iterable[Tensor]
) -> dict[str, str]:
    """Find the matrices without an input vector, or without a way to the predictions.

    An expert that was never chosen counts as reached where a sibling was chosen: its statistics are
    those of an average sibling.

    Args:
        model: in evaluation mode; its weights are not touched.
        specs: the matrices to look for.
        windows: the calibration text, token ids ``[length]`` each. They are read until every matrix
            has been reached.

    Returns:
        The reason by name, in the order of ``specs``.
    """
    device = next(model.parameters()).device
    work = [window[None].to(device) for window in windows]
    called: set[str] = set()
    heard: set[str] = set()  # those to which a gradient came back
    groups = {spec.name: siblings_of(spec.name) for spec in specs}
    places = {
        (groups[spec.name], path)
        for spec in specs
        for path in (home_of(model, spec.name), *spec.tied)
    }
    handles = [
        model.get_submodule(path).register_forward_hook(
            _hook(group, called, heard), with_kwargs=True
        )
        for group, path in places
    ]
    try:
        with gradients_from_the_embeddings(model), without_cache(model):
            with torch.enable_grad():
                returned = model(input_ids=work[0][:, :FIRST_TOKENS])
                learns = _send_back(objective_for(model).output_of(returned))
            silent = called - heard if learns else set[str]()
            with torch.no_grad():
                for ids in work:
                    if called.issuperset(groups.values()):
                        break
                    model(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: NO_GRADIENT if group in silent else NO_INPUT
        for name, group in groups.items()
        if group in silent or group not in called
    }


def _hook(group: str, called: set[str], heard: set[str]) -> Any:
    def forward(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if input_of(args, kwargs).numel():
            called.add(group)
        if isinstance(output, Tensor) and torch.is_grad_enabled():
            output = with_gradient(output)
            output.register_hook(lambda _gradient: heard.add(group))
        return output

    return forward


def _send_back(outputs: Tensor | None) -> bool:
    """Send a gradient back from the outputs; whether there was a way."""
    if outputs is None or not outputs.requires_grad:
        return False
    torch.autograd.backward(outputs.float().sum())
    return True
