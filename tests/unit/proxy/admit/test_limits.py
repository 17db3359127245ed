"""Limits worked out by hand; against a plain account of what is left they stand in `tests/properties`."""

import pytest

from billing.clock import MINUTE_US, SECOND_US
from proxy.admit.limits import Buckets, Exceeded, check, give_back, take_request

NOW = 1_772_366_400 * SECOND_US


def burst(rpm: int, at: int = NOW, most: int = 10**6) -> int:
    """How many requests a fresh key gets at one instant."""
    buckets, taken = Buckets(), 0
    while check(buckets, rpm, 0, 0, at) is None and taken <= most:
        take_request(buckets, rpm, at)
        taken += 1
    return taken


@pytest.mark.parametrize("rpm", [1, 2, 7, 59, 60, 61, 600, 999, 7_919, 70_000])
def test_a_minutes_worth_may_be_used_at_once_and_not_one_more(rpm: int) -> None:
    """Whatever the minute is divided by; in microseconds 70,000 came out as 70,011."""
    assert burst(rpm) == rpm


def test_after_a_burst_requests_come_back_one_by_one() -> None:
    """Ten a minute: one each six seconds, told exactly, and not a microsecond sooner."""
    buckets = Buckets()
    for _ in range(10):
        take_request(buckets, 10, NOW)
    assert check(buckets, 10, 0, 0, NOW) == Exceeded("requests", 10, 6 * SECOND_US)
    assert check(buckets, 10, 0, 0, NOW + 6 * SECOND_US - 1) == Exceeded("requests", 10, 1)
    assert check(buckets, 10, 0, 0, NOW + 6 * SECOND_US) is None
    take_request(buckets, 10, NOW + 6 * SECOND_US)
    assert check(buckets, 10, 0, 0, NOW + 6 * SECOND_US) == Exceeded("requests", 10, 6 * SECOND_US)
    assert check(buckets, 10, 0, 0, NOW + 2 * MINUTE_US) is None


@pytest.mark.parametrize("rpm", [7, 70_000, 1])
def test_whoever_comes_back_when_told_is_let_in_and_not_before(rpm: int) -> None:
    """Where a minute can not be divided, too: told in whole microseconds, rounded up."""
    buckets = Buckets()
    for _ in range(rpm):
        take_request(buckets, rpm, NOW)
    exceeded = check(buckets, rpm, 0, 0, NOW)
    assert exceeded == Exceeded("requests", rpm, -(-MINUTE_US // rpm))
    assert check(buckets, rpm, 0, 0, NOW + exceeded.retry_us - 1) is not None
    assert check(buckets, rpm, 0, 0, NOW + exceeded.retry_us) is None


def test_tokens_are_taken_when_they_are_known() -> None:
    """A request runs while the bucket is not overdrawn, whatever it will use; the next one waits for the refill."""
    buckets = Buckets()
    take_request(buckets, 0, NOW)
    take_request(buckets, 0, NOW)
    give_back(buckets, 1_000, 999, NOW)
    assert check(buckets, 0, 1_000, 0, NOW) is None
    give_back(buckets, 1_000, 1, NOW)
    assert check(buckets, 0, 1_000, 0, NOW) == Exceeded("tokens", 1_000, 1)
    assert check(buckets, 0, 1_000, 0, NOW + 1) is None


def test_an_overdrawn_bucket_refills_at_the_limits_pace() -> None:
    """Three minutes' worth used at once: two minutes until the next request."""
    buckets = Buckets()
    take_request(buckets, 0, NOW)
    give_back(buckets, 1_000, 3_000, NOW)
    exceeded = check(buckets, 0, 1_000, 0, NOW)
    assert exceeded == Exceeded("tokens", 1_000, 2 * MINUTE_US + 1)
    assert check(buckets, 0, 1_000, 0, NOW + exceeded.retry_us - 1) is not None
    assert check(buckets, 0, 1_000, 0, NOW + exceeded.retry_us) is None


@pytest.mark.parametrize("tpm", [7, 997, 70_000, 100_000_000])
def test_single_tokens_add_up_to_the_limit_whatever_it_is(tpm: int) -> None:
    """A share too small for a microsecond would be free for ever."""
    buckets, singles = Buckets(), min(tpm, 1_000)
    for tokens in (*[1] * singles, tpm - singles):
        take_request(buckets, 0, NOW)
        give_back(buckets, tpm, tokens, NOW)
    assert check(buckets, 0, tpm, 0, NOW + 1) is None
    take_request(buckets, 0, NOW)
    give_back(buckets, tpm, 1, NOW)
    assert check(buckets, 0, tpm, 0, NOW) is not None


def test_concurrency_is_what_is_in_flight() -> None:
    """A place is free again the instant it is given back."""
    buckets = Buckets()
    take_request(buckets, 0, NOW)
    take_request(buckets, 0, NOW)
    assert check(buckets, 0, 0, 2, NOW) == Exceeded("concurrency", 2, SECOND_US)
    assert check(buckets, 0, 0, 3, NOW) is None
    give_back(buckets, 0, 7, NOW)
    assert check(buckets, 0, 0, 2, NOW) is None


def test_no_limit_counts_only_what_is_in_flight() -> None:
    """Zero means none."""
    buckets = Buckets()
    for _ in range(100):
        take_request(buckets, 0, NOW)
        assert check(buckets, 0, 0, 0, NOW) is None
    for _ in range(100):
        give_back(buckets, 0, 10**9, NOW)
    assert buckets == Buckets()


def test_the_first_limit_that_forbids_is_named() -> None:
    """Concurrency, then requests, then tokens."""
    buckets = Buckets()
    for _ in range(2):
        take_request(buckets, 1, NOW)
    give_back(buckets, 1, 5, NOW)
    kinds = [check(buckets, rpm, tpm, places, NOW) for rpm, tpm, places in ((1, 1, 1), (1, 1, 0), (0, 1, 0))]
    assert [exceeded and exceeded.kind for exceeded in kinds] == ["concurrency", "requests", "tokens"]


def test_what_was_not_taken_can_not_be_given_back() -> None:
    """Our own mistake, and loud."""
    with pytest.raises(AssertionError):
        give_back(Buckets(), 0, 0, NOW)
