"""Rate limits as values: requests and tokens per minute by the generic cell rate algorithm, in whole picoseconds.

A bucket is one integer, the instant at which it would be empty again ("theoretical arrival time", ITU-T I.371). A
minute's worth may be spent at once; after that it refills steadily: over any time t a limit of L per minute lets at
most L + L·t through, and no window edge more. Requests are taken at admission. Tokens are known only afterwards: a
request is admitted while the bucket is not overdrawn, and what it used is taken at settlement, so that what is in
flight then may come on top.

In microseconds the share of one request would be rounded, and 70,000 a minute let 70,011 through.
"""

from dataclasses import dataclass
from typing import NamedTuple

from billing.clock import MINUTE_US

_FINE = 1_000_000
_MINUTE = MINUTE_US * _FINE


@dataclass(slots=True)
class Buckets:
    """What one key has used: two instants in picoseconds, and how many requests are in flight."""

    requests_until: int = 0
    tokens_until: int = 0
    in_flight: int = 0


class Exceeded(NamedTuple):
    """A limit that is used up: which, its size per minute, and in how many microseconds a retry can pass."""

    kind: str
    limit: int
    retry_us: int
    is_customers: bool = False
    lines: bytes = b""
    """The header lines that say what is left."""


class Kept(NamedTuple):
    """What is left of one limit; `reset_us` until all of it is there again. The tightest is the least."""

    remaining: int
    limit: int
    reset_us: int


class Left(NamedTuple):
    """What is left of a key's or a customer's limits per minute; None where there is none."""

    requests: Kept | None
    tokens: Kept | None


def check(buckets: Buckets, rpm: int, tpm: int, concurrency: int, now: int) -> Exceeded | None:
    """Say which limit forbids one more request at `now` (in microseconds), None if it may run; 0 means no limit."""
    if concurrency and buckets.in_flight >= concurrency:
        return Exceeded("concurrency", concurrency, 1_000_000)
    if rpm:
        wait = buckets.requests_until + _MINUTE // rpm - now * _FINE - _MINUTE
        if wait > 0:
            return Exceeded("requests", rpm, -(-wait // _FINE))
    if tpm:
        wait = buckets.tokens_until - now * _FINE - _MINUTE
        if wait >= 0:
            return Exceeded("tokens", tpm, wait // _FINE + 1)
    return None


def left(buckets: Buckets, rpm: int, tpm: int, now: int) -> Left:
    """Return what is left at `now`, in microseconds, in whole requests and tokens."""
    return Left(_kept(buckets.requests_until, rpm, now), _kept(buckets.tokens_until, tpm, now))


def _kept(until: int, limit: int, now: int) -> Kept | None:
    if not limit:
        return None
    used = max(0, until - now * _FINE)
    return Kept(max(0, _MINUTE - used) // max(1, _MINUTE // limit), limit, -(-used // _FINE))


def take_request(buckets: Buckets, rpm: int, now: int) -> None:
    """Count one admitted request."""
    buckets.in_flight += 1
    if rpm:
        buckets.requests_until = max(buckets.requests_until, now * _FINE) + _MINUTE // rpm


def untake_request(buckets: Buckets, rpm: int) -> None:
    """Take an admitted request back: nothing was asked of any server."""
    buckets.in_flight -= 1
    assert buckets.in_flight >= 0, "each end has its beginning"
    if rpm:
        buckets.requests_until -= _MINUTE // rpm


def give_back(buckets: Buckets, tpm: int, tokens: int, now: int) -> None:
    """Count a request's end and the tokens that it used."""
    buckets.in_flight -= 1
    assert buckets.in_flight >= 0, "each end has its beginning"
    if tpm:
        buckets.tokens_until = max(buckets.tokens_until, now * _FINE) + tokens * _MINUTE // tpm
