"""Targets as people type them, and bytes as people read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from autocompress.errors import ConfigurationError

BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_UNITS_BY_LOWER_CASE = {unit.lower(): factor for unit, factor in BYTE_UNITS.items()}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]+)\s*")
MEMORY_FORMS = "a ratio (10x), a share (25%), or a size (1.6MB, 2GiB)"
LATENCY_FORMS = "milliseconds a token (6ms) or a multiple of the dense model's latency (0.8x)"
QUALITY_FORMS = (
    "a growth of perplexity (5%), an increase of log-perplexity in nats a token (0.02), or a "
    "cosine between 0 and 1 (cosine 0.9)"
)
# Nats a token without a unit; more multiplies the perplexity by 2.7, and is rather a per cent.
MOST_NATS = 1.0


@dataclass(frozen=True)
class Limits:
    """Targets in absolute units; ``None`` means that there is none.

    Attributes:
        memory_bytes: most bytes of the stored model.
        latency_ms: most milliseconds for one decoded token at batch 1.
        log_perplexity_increase: most nats a token that log-perplexity may be above the dense
            model's.
        cosine: least mean cosine between the hidden states before the head and the dense model's.
    """

    memory_bytes: int | None
    latency_ms: float | None
    log_perplexity_increase: float | None = None
    cosine: float | None = None

    @property
    def unlimited(self) -> bool:
        """Whether everything is allowed."""
        return self.memory_bytes is None and self.latency_ms is None and not self.asks_quality

    @property
    def asks_quality(self) -> bool:
        """Whether quality is a target, so that the smallest plan is sought."""
        return self.log_perplexity_increase is not None or self.cosine is not None


@dataclass(frozen=True)
class Budget:
    """What the compressed model may cost, as typed: absolute, or relative to the dense model.

    Attributes:
        memory_bytes: most bytes of the stored model.
        memory_share: most bytes as a share of the dense model's (``10x`` is 0.1, ``25%`` is 0.25).
        latency_ms: most milliseconds for one decoded token at batch 1.
        latency_share: the same as a share of the dense model's latency.
        log_perplexity_increase: see ``Limits``; ``5%`` is log 1.05.
        cosine: see ``Limits``.
    """

    memory_bytes: int | None = None
    memory_share: float | None = None
    latency_ms: float | None = None
    latency_share: float | None = None
    log_perplexity_increase: float | None = None
    cosine: float | None = None

    @classmethod
    def parse(
        cls, memory: str | None = None, latency: str | None = None, quality: str | None = None
    ) -> Budget:
        """Read ``--budget``, ``--latency`` and ``--quality``.

        Raises:
            ConfigurationError: a text that is no number with a unit, or a limit that is not
                positive.
        """
        fields: dict[str, float] = {}
        if memory is not None:
            fields |= _parse_memory(memory)
        if latency is not None:
            fields |= _parse_latency(latency)
        if quality is not None:
            fields |= _parse_quality(quality)
        return cls(**fields)  # type: ignore[arg-type]

    def limits(self, dense_bytes: int, dense_latency_ms: float) -> Limits:
        """Turn the budget into absolute limits, given what the dense model costs."""
        memory, latency = self.memory_bytes, self.latency_ms
        if self.memory_share is not None:
            memory = math.floor(self.memory_share * dense_bytes)
        if self.latency_share is not None:
            latency = self.latency_share * dense_latency_ms
        return Limits(memory, latency, self.log_perplexity_increase, self.cosine)


def _number_and_unit(option: str, text: str, forms: str) -> tuple[float, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{option} is not understood", got=repr(text), wanted=forms)
    number = float(match[1])
    if not number > 0 or math.isinf(number):
        raise ConfigurationError(f"{option} must be more than zero", got=repr(text), wanted=forms)
    return number, match[2]


def _parse_memory(text: str) -> dict[str, float]:
    number, unit = _number_and_unit("--budget", text, MEMORY_FORMS)
    if unit in ("x", "X", "%"):
        share = number / 100 if unit == "%" else 1 / number
        if share > 1:
            what = "--budget asks for a model larger than the dense one"
            raise ConfigurationError(what, got=repr(text), wanted="at least 1x, or at most 100%")
        return {"memory_share": share}
    factor = _UNITS_BY_LOWER_CASE.get(unit.lower())
    if factor is None:
        raise ConfigurationError(
            "--budget has an unknown unit", got=repr(text), wanted=MEMORY_FORMS
        )
    return {"memory_bytes": math.floor(number * factor)}


def _parse_latency(text: str) -> dict[str, float]:
    number, unit = _number_and_unit("--latency", text, LATENCY_FORMS)
    if unit in ("x", "X"):
        return {"latency_share": number}
    if unit.lower() in ("ms", "s"):
        return {"latency_ms": number * (1000 if unit.lower() == "s" else 1)}
    raise ConfigurationError("--latency has an unknown unit", got=repr(text), wanted=LATENCY_FORMS)


_QUALITY = re.compile(
    r"\s*(cosine|cos)?[\s=:]*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|nats?)?\s*", re.ASCII
)


def _parse_quality(text: str) -> dict[str, float]:
    match = _QUALITY.fullmatch(text.lower())
    if match is None:
        raise ConfigurationError(
            "--quality is not understood", got=repr(text), wanted=QUALITY_FORMS
        )
    word, number, unit = match[1], float(match[2]), match[3]
    if not 0 < number < math.inf:
        raise ConfigurationError(
            "--quality must be more than zero",
            got=repr(text),
            wanted=QUALITY_FORMS,
            hint="The dense model alone loses nothing at all.",
        )
    if word is not None:
        if unit is not None or number >= 1:
            raise ConfigurationError(
                "--quality asks for a cosine that is none",
                got=repr(text),
                wanted="a cosine between 0 and 1, such as cosine 0.9",
            )
        return {"cosine": number}
    if unit == "%":
        return {"log_perplexity_increase": math.log1p(number / 100)}
    if unit is None and number > MOST_NATS:
        raise ConfigurationError(
            "--quality allows any loss",
            got=f"{text!r}, a log-perplexity increase of {number:g} nats a token",
            wanted=QUALITY_FORMS,
            hint=f"Type {number:g}% if perplexity may grow by {number:g} %, or {number:g}nats.",
        )
    return {"log_perplexity_increase": number}


_DURATION_PART = re.compile(r"([0-9]*\.?[0-9]+)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, option: str = "--time") -> float:
    """Read ``90s``, ``10m``, ``1h30m`` or a plain number of seconds.

    Raises:
        ConfigurationError: anything else, or no time at all.
    """
    compact = text.strip().lower()
    parts = _DURATION_PART.findall(compact)
    rest = _DURATION_PART.sub("", compact).strip()
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not parts:
        try:
            seconds, rest = float(compact), ""
        except ValueError:
            rest = compact
    if rest or not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"{option} is not understood", got=repr(text), wanted="a time such as 90s, 10m or 1h30m"
        )
    return seconds


def parse_size(text: str, option: str) -> int:
    """Read a number of bytes with its unit: ``5GB``, ``300 MiB``.

    Raises:
        ConfigurationError: anything else, or nothing at all.
    """
    forms = "a size such as 500MB, 5GB or 2GiB"
    number, unit = _number_and_unit(option, text, forms)
    factor = _UNITS_BY_LOWER_CASE.get(unit.lower())
    if factor is None:
        raise ConfigurationError(f"{option} has an unknown unit", got=repr(text), wanted=forms)
    return math.floor(number * factor)


def format_bytes(count: float) -> str:
    """Write a number of bytes with three digits and a decimal unit: ``1.61 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:  # what three digits would round up takes the next unit
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_cpu(threads: int) -> str:
    """A processor with the threads that are used of it, as ``cpu (2 threads)``."""
    return "cpu (1 thread)" if threads == 1 else f"cpu ({threads} threads)"


def about(seconds: float) -> str:
    """A predicted time in words, with no more digits than it is worth: ``about 4 min``."""
    if seconds < 0.5:
        return "less than a second" if seconds else "no time"
    if seconds < 90:
        return f"about {_rounded(seconds)} s"
    if seconds < 90 * 60:
        return f"about {_rounded(seconds / 60)} min"
    return f"about {_rounded(seconds / 3600)} h"


def _rounded(number: float) -> str:
    """One digit below 10, else two."""
    digits = 1 if number < 9.5 else 2
    step = 10.0 ** (math.floor(math.log10(number)) - digits + 1)
    return f"{round(number / step) * step:,.0f}"
