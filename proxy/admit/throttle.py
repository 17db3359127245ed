"""Rate limits of keys and customers, over all workers of this host.

A request is admitted if each of its limits (its key's, its customer's) allows it, decided and counted in one step under
the table's lock, so that workers admit exactly what one would. Whoever has no limits costs nothing here. A request that
is refused later, for want of credit or of a server, is taken back: it used nothing, and its client must be able to try
again when there is.
"""

import time
from collections.abc import Callable

from billing.ledger.accounts import Rate
from proxy.admit import limits
from proxy.admit.limits import Buckets, Exceeded
from proxy.admit.table import Table

Rates = tuple[Rate, ...]


class Throttle:
    """What is used of all limits; the methods are the event loop's."""

    def __init__(self, table: Table, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._table = table
        self._monotonic_ns = monotonic_ns
        self._own: dict[str, Buckets] = {}

    def admit(self, rates: Rates) -> Exceeded | bytes:
        """Count one more request, and return the header lines that say what is left; or say which limit forbids it."""
        now, table = self._monotonic_ns() // 1_000, self._table
        table.acquire()
        try:
            rows = [table.row_of(rate.owner_id) for rate in rates]
            found = [self._read(rate, row) for rate, row in zip(rates, rows, strict=True)]
            for rate, buckets in zip(rates, found, strict=True):
                exceeded = limits.check(buckets, rate.rpm, rate.tpm, rate.concurrency, now)
                if exceeded is not None:
                    return exceeded._replace(is_customers=rate.is_customers, lines=_left(rates, found, now))
            for rate, row, buckets in zip(rates, rows, found, strict=True):
                limits.take_request(buckets, rate.rpm, now)
                if row is not None:
                    table.write(row, buckets, now, flown=1)
        finally:
            table.release()
        return _left(rates, found, now)

    def end(self, rates: Rates, tokens: int) -> None:
        """Count an admitted request's end, and the tokens that it used."""
        now, table = self._monotonic_ns() // 1_000, self._table
        table.acquire()
        try:
            for rate in rates:
                row = table.row_of(rate.owner_id)
                buckets = self._read(rate, row)
                buckets.in_flight = max(1, buckets.in_flight)
                limits.give_back(buckets, rate.tpm, tokens, now)
                if row is not None:
                    table.write(row, buckets, now, flown=-1)
        finally:
            table.release()

    def undo(self, rates: Rates) -> bytes:
        """Take an admitted request back, which was refused before any server was asked; return what is left now."""
        now, table = self._monotonic_ns() // 1_000, self._table
        table.acquire()
        try:
            found = []
            for rate in rates:
                row = table.row_of(rate.owner_id)
                buckets = self._read(rate, row)
                buckets.in_flight = max(1, buckets.in_flight)
                limits.untake_request(buckets, rate.rpm)
                if row is not None:
                    table.write(row, buckets, now, flown=-1)
                found.append(buckets)
        finally:
            table.release()
        return _left(rates, found, now)

    def _read(self, rate: Rate, row: int | None) -> Buckets:
        if row is not None:
            return self._table.read(row)
        return self._own.setdefault(rate.owner_id, Buckets())


def _left(rates: Rates, found: list[Buckets], now: int) -> bytes:
    """Write OpenAI's header lines, of each kind the tightest limit; `reset` is when all of it is there again."""
    left = [limits.left(buckets, rate.rpm, rate.tpm, now) for rate, buckets in zip(rates, found, strict=True)]
    lines = []
    for kind, each in ((b"requests", [one.requests for one in left]), (b"tokens", [one.tokens for one in left])):
        limited = [kept for kept in each if kept is not None]
        if limited:
            tightest = min(limited)
            lines.append(
                b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"
                % (kind, tightest.limit, kind, tightest.remaining, kind, duration(tightest.reset_us))
            )
    return b"".join(lines)


def duration(us: int) -> bytes:
    """Write a duration as OpenAI does, rounded up to milliseconds: "6m0s", "1.5s", "20ms"."""
    ms = -(-us // 1_000)
    if ms < 1_000:
        return b"%dms" % ms
    minutes, rest = divmod(ms, 60_000)
    seconds = b"%d" % (rest // 1_000) + (b".%03d" % (rest % 1_000)).rstrip(b"0").rstrip(b".")
    return (b"%dm" % minutes if minutes else b"") + seconds + b"s"
