"""Compiles loops for the processor by numba, and keeps what was compiled where something can be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function, as ``numba.njit`` does, once for all processes if a cache can be written.

    numba keeps a cache in the folder of the source or in the home, and raises where neither can be
    written, as in containers whose file system is read-only. Then each process compiles anew. No
    folder that other users write to takes the cache's place: what is in it is run.
    """

    def compile_(function: Function) -> Function:
        try:
            kept: Function = njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _note()
            anew: Function = njit(**options)(function)
            return anew
        return kept

    return compile_


@cache
def _note() -> None:
    logging.getLogger(__name__).warning(
        "The loops that numba compiles cannot be kept: neither the folder of autocompress nor a "
        "home can be written. Each process compiles them anew, which takes some seconds. Set "
        "NUMBA_CACHE_DIR to a folder of yours that can be written."
    )
