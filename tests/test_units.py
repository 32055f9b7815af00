from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import ConfigurationError
from autocompress.units import BYTE_UNITS, Budget, Limits, format_bytes, parse_duration

BAD_MEMORY = (
    *(
        "0x",
        "-3MB",
        "abc",
        "",
        " ",
        "x",
        "10",
        "MB",
        "0%",
        "0MB",
        "-1x",
        "1,5MB",
        "10 x 2",
        "10xx",
        "5 parsecs",
    ),
    *(
        "nan",
        "nanx",
        "inf",
        "infx",
        "1e999MB",
        "0.5x",
        "150%",
        "100.1%",
        "6ms",
        "٣x",
        "1e-400x",
        "10x\n5x",
    ),
)
BAD_LATENCY = ("0x", "0ms", "-1ms", "abc", "", "6", "ms", "25%", "6MB", "6min", "nanms", "1e999ms")


@pytest.mark.parametrize("text", BAD_MEMORY)
def test_a_budget_that_makes_no_sense_is_one_paragraph_that_shows_it(text):
    with pytest.raises(ConfigurationError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert message.startswith("--budget")
    assert repr(text) in message
    assert "wanted" in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", BAD_LATENCY)
def test_a_latency_that_makes_no_sense_is_one_paragraph_that_shows_it(text):
    with pytest.raises(ConfigurationError) as caught:
        Budget.parse(None, text)
    assert str(caught.value).startswith("--latency")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10x", 1_600_000),
        ("1x", 16_000_000),
        ("12.5X", 1_280_000),
        ("25%", 4_000_000),
        ("100%", 16_000_000),
        (".5%", 80_000),
        ("1.6MB", 1_600_000),
        ("1.6 mb", 1_600_000),
        (" 3 KiB ", 3072),
        ("2GiB", 2 * 2**30),
        ("1e6B", 1_000_000),
        ("7kB", 7000),
    ],
)
def test_memory_limits(text, limit):
    assert Budget.parse(text).limits(16_000_000, 5.0) == Limits(limit, None)


@pytest.mark.parametrize(
    ("text", "limit"), [("6ms", 6.0), ("0.8x", 4.0), ("2X", 10.0), ("0.01 s", 10.0)]
)
def test_latency_limits(text, limit):
    assert Budget.parse(latency=text).limits(16_000_000, 5.0) == Limits(None, limit)


@pytest.mark.parametrize(
    ("text", "increase", "cosine"),
    [
        ("5%", math.log(1.05), None),
        ("0.02", 0.02, None),
        (" .02 nats ", 0.02, None),
        ("1.5nats", 1.5, None),
        ("200%", math.log(3), None),
        ("cosine 0.9", None, 0.9),
        ("Cosine=.95", None, 0.95),
    ],
)
def test_quality(text, increase, cosine):
    limits = Budget.parse(quality=text).limits(16_000_000, 5.0)
    assert limits.log_perplexity_increase == pytest.approx(increase)
    assert limits.cosine == cosine
    assert limits.asks_quality
    assert not limits.unlimited


@pytest.mark.parametrize(
    "text",
    ["", "5", "0", "0%", "-1%", "abc", "nan", "inf", "1e999%", "cosine", "cosine 1", "cosine 0",
     "cosine 90%", "cosine 1.2", "6ms", "10x", "5 %%", "0.9 cosine", "٣%"],
)  # fmt: skip
def test_a_quality_that_makes_no_sense_is_one_paragraph_that_shows_it(text):
    with pytest.raises(ConfigurationError) as caught:
        Budget.parse(quality=text)
    assert str(caught.value).startswith("--quality")
    assert repr(text) in str(caught.value)


def test_nats_that_are_rather_a_per_cent_are_answered_with_it():
    with pytest.raises(ConfigurationError, match="Type 5% if perplexity may grow by 5 %"):
        Budget.parse(quality="5")


def test_both_limits_and_none():
    assert Budget.parse("10x", "6ms") == Budget(memory_share=0.1, latency_ms=6.0)
    assert Budget.parse().limits(1000, 1.0) == Limits(None, None)


def test_a_share_is_rounded_down():
    """A third of ten bytes is three bytes: rounding up would allow more than was asked for."""
    assert Budget.parse("3x").limits(10, 1.0).memory_bytes == 3
    assert Budget.parse("1.9999B").memory_bytes == 1


@given(st.floats(1, 1e6), st.integers(1, 10**13))
def test_a_ratio_never_allows_more_than_its_share(ratio, dense):
    limit = Budget.parse(f"{ratio!r}x").limits(dense, 1.0).memory_bytes
    assert limit is not None
    assert 0 <= limit <= dense / ratio * (1 + 1e-12)
    assert limit >= dense / ratio * (1 - 1e-12) - 1


@given(st.integers(1, 10**6), st.sampled_from(sorted(BYTE_UNITS)))
def test_units_in_any_case(number, unit):
    for typed in (unit, unit.lower(), unit.upper()):
        assert Budget.parse(f"{number}{typed}").memory_bytes == number * BYTE_UNITS[unit]


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_a_budget_or_a_named_error(memory, latency):
    try:
        budget = Budget.parse(memory, latency)
    except ConfigurationError:
        return
    limits = budget.limits(10**9, 10.0)
    assert limits.memory_bytes is not None
    assert limits.memory_bytes >= 0
    assert limits.latency_ms is not None
    assert 0 < limits.latency_ms < math.inf


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172_800),
        ("45", 45),
        ("1.5h", 5400),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "0s",
        "-5",
        "-5s",
        "abc",
        "10 minutes",
        "1h30",
        "5 5m",
        "nan",
        "inf",
        "s",
        "1h-30m",
        "1e999s",
    ],
)
def test_a_time_that_makes_no_sense_is_named(text):
    with pytest.raises(ConfigurationError, match="--time") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_time_or_a_named_error(text):
    try:
        seconds = parse_duration(text)
    except ConfigurationError:
        return
    assert 0 < seconds < math.inf


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_612_345, "1.61 MB"),
        (16_000_000, "16 MB"),
        (2.5e9, "2.5 GB"),
        (3e12, "3 TB"),
        (999_600, "1 MB"),
    ],
)
def test_bytes_as_people_read_them(count, text):
    assert format_bytes(count) == text


@given(st.floats(1, 9e14))
def test_written_bytes_read_back_within_their_three_digits(count):
    shown = format_bytes(count)
    assert "e" not in shown
    read = Budget.parse(shown).memory_bytes
    assert read is not None
    assert abs(read - count) <= max(0.005 * count, 1)
