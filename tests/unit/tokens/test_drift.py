"""Drift: sums of samples, and the verdict on a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.tokens.drift import Side, Verdict, compared

counts = st.integers(0, 10**6)
samples = st.lists(st.tuples(counts, counts, counts), max_size=20)


def summed(found: list[tuple[int, int, int]]) -> Side:
    """Samples of (reported, counted, slack), added up."""
    return sum((compared(*one) for one in found), Side())


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([], Verdict.NONE),
        ([(44, 44, 2), (13, 13, 0)], Verdict.EXACT),
        ([(0, 0, 0)], Verdict.EXACT),
        ([(45, 44, 2), (13, 13, 0)], Verdict.WITHIN),
        ([(46, 44, 2)], Verdict.WITHIN),
        ([(47, 44, 2)], Verdict.OVER),
        ([(41, 44, 2)], Verdict.UNDER),
        ([(0, 44, 2)], Verdict.UNDER),
        ([(88, 44, 2), (0, 44, 2)], Verdict.OVER),  # the sum is right and no sample is
        ([(60, 44, 2)] + [(44, 44, 2)] * 99, Verdict.WITHIN),  # one odd sample in a hundred
        ([(60, 44, 2)] + [(44, 44, 2)] * 98, Verdict.OVER),
        ([(900, 44, 2)] + [(44, 44, 2)] * 399, Verdict.OVER),  # one, but more than all slack together
        ([(10**30, 44, 2)], Verdict.OVER),
        ([(-5, 44, 2)], Verdict.UNDER),
    ],
)
def test_verdicts_by_hand(found: list[tuple[int, int, int]], verdict: Verdict) -> None:
    """At the slack, beyond it, and where differences cancel."""
    assert summed(found).verdict is verdict


def test_a_sum_by_hand() -> None:
    """Every field."""
    assert summed([(50, 44, 2), (40, 44, 2), (44, 44, 2)]) == Side(3, 134, 132, 6, 1, 1, 6, -4)


@given(samples, samples)
def test_sums_of_sums_are_sums(one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]) -> None:
    """In any grouping; no token is lost."""
    assert summed(one) + summed(other) == summed(one + other)
    total = summed(one)
    assert (total.reported, total.counted) == (sum(r for r, _, _ in one), sum(c for _, c, _ in one))


@given(st.lists(st.tuples(counts, st.integers(0, 50)), min_size=1, max_size=20))
def test_an_honest_server_is_never_accused(found: list[tuple[int, int]]) -> None:
    """Whatever is within its slack, in either direction, is not over and not under."""
    honest = [
        (max(0, counted + (slack if n % 2 else -slack)), counted, slack) for n, (counted, slack) in enumerate(found)
    ]
    assert summed(honest).verdict in (Verdict.EXACT, Verdict.WITHIN)
