"""Limits of keys and customers over several processes: together they admit what one would."""

import os
import signal
from collections.abc import Callable

import pytest

from billing.clock import SECOND_US
from billing.ledger.accounts import Rate
from proxy.admit.limits import Exceeded
from proxy.admit.table import PROBES_MAX, Table
from proxy.admit.throttle import Throttle, duration

NOW_NS = 5_000_000 * 10**9


def rate(owner: str = "key_1", *, rpm: int = 0, tpm: int = 0, concurrency: int = 0, customers: bool = False) -> Rate:
    """Limits."""
    return Rate(owner, rpm, tpm, concurrency, customers)


class Time:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.ns = NOW_NS

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.ns += seconds * 10**9


def throttle(table: Table | None = None, time: Time | None = None) -> Throttle:
    """A worker's."""
    return Throttle(table or Table(1), time or Time())


def in_children(count: int, work: Callable[[int], int]) -> list[int]:
    """Run in forked processes; what each returned, below 2¹⁶."""
    pipes = [os.pipe() for _ in range(count)]
    for number, (_, end) in enumerate(pipes):
        if os.fork() == 0:
            try:
                os.write(end, work(number).to_bytes(4, "big"))
            finally:
                os._exit(0)
    found = []
    for begin, end in pipes:
        os.close(end)
        found.append(int.from_bytes(os.read(begin, 4), "big"))
        os.close(begin)
        os.wait()
    return found


def test_workers_admit_together_what_one_would() -> None:
    """Four processes that all ask for everything at one instant."""
    table = Table(4)

    def work(number: int) -> int:
        table.join(number)
        own = throttle(table)
        return sum(isinstance(own.admit((rate(rpm=1_000),)), bytes) for _ in range(1_500))

    admitted = in_children(4, work)
    assert sum(admitted) == 1_000, admitted


def test_workers_share_places() -> None:
    """Requests at a time, some of which end; what a worker of the same number left behind is nothing."""
    table, limit = Table(3), (rate(concurrency=5),)

    def work(number: int) -> int:
        table.join(number)
        own = throttle(table)
        taken = 0
        for _ in range(200):
            if isinstance(own.admit(limit), bytes):
                own.end(limit, 0)
        while isinstance(own.admit(limit), bytes):
            taken += 1
        return taken

    assert sum(in_children(3, work)) == 5
    for number in range(3):
        table.join(number)
    assert isinstance(throttle(table).admit(limit), bytes)


def test_a_stopped_worker_that_has_the_lock_stops_nobody() -> None:
    table = Table(2)
    begin, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        table.acquire()
        os.write(end, b"x")
        signal.pause()
    assert os.read(begin, 1) == b"x"
    try:
        assert isinstance(throttle(table).admit((rate(rpm=1),)), bytes)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(begin)
        os.close(end)


def test_a_request_falls_under_its_keys_and_its_customers_limits() -> None:
    own = throttle()
    one = (rate("key_1", rpm=5), rate("cust", rpm=7, customers=True))
    other = (rate("key_2", rpm=5), rate("cust", rpm=7, customers=True))
    assert [isinstance(own.admit(one), bytes) for _ in range(6)] == [True] * 5 + [False]
    assert [isinstance(own.admit(other), bytes) for _ in range(3)] == [True, True, False]
    exceeded = own.admit(other)
    assert isinstance(exceeded, Exceeded)
    assert (exceeded.kind, exceeded.limit, exceeded.is_customers) == ("requests", 7, True)
    alone = own.admit((rate("key_1", rpm=5),))
    assert isinstance(alone, Exceeded)
    assert alone[:4] == ("requests", 5, 12 * SECOND_US, False)


def test_answers_say_what_is_left_of_the_tightest() -> None:
    time = Time()
    own = throttle(time=time)
    both = (rate("key_1", rpm=60, tpm=600), rate("cust", rpm=10, customers=True))
    assert own.admit(both) == (
        b"x-ratelimit-limit-requests: 10\r\nx-ratelimit-remaining-requests: 9\r\nx-ratelimit-reset-requests: 6s\r\n"
        b"x-ratelimit-limit-tokens: 600\r\nx-ratelimit-remaining-tokens: 600\r\nx-ratelimit-reset-tokens: 0ms\r\n"
    )
    own.end(both, 700)
    exceeded = own.admit(both)
    assert isinstance(exceeded, Exceeded)
    assert exceeded[:4] == ("tokens", 600, 10 * SECOND_US + 1, False)
    assert exceeded.lines == (
        b"x-ratelimit-limit-requests: 10\r\nx-ratelimit-remaining-requests: 9\r\nx-ratelimit-reset-requests: 6s\r\n"
        b"x-ratelimit-limit-tokens: 600\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1m10s\r\n"
    )
    busy = own.admit((rate("cust", rpm=10, concurrency=1), rate("key_3", concurrency=1)))
    assert isinstance(busy, bytes)
    full = own.admit((rate("cust", rpm=10, concurrency=1),))
    assert isinstance(full, Exceeded)
    assert (full.kind, full.lines.startswith(b"x-ratelimit-limit-requests: 10\r\n")) == ("concurrency", True)
    own.undo((rate("cust", rpm=10, concurrency=1), rate("key_3", concurrency=1)))
    time.wait(40)
    lines = own.admit(both)
    assert isinstance(lines, bytes)
    assert b"remaining-tokens: 300\r\nx-ratelimit-reset-tokens: 30s\r\n" in lines
    assert own.admit((rate(concurrency=3),)) == b""


def test_what_is_taken_back_was_never_counted() -> None:
    """However often, beside others that stay, and though time passes between: nobody gains a request by it."""
    time = Time()
    own = throttle(time=time)
    limit = (rate(rpm=6, concurrency=2), rate("cust", rpm=60, customers=True))
    before = own.admit(limit)
    for _ in range(50):
        assert isinstance(own.admit(limit), bytes)
        assert own.undo(limit) == before
        assert isinstance(own.admit(limit), bytes)
        time.wait(20)
        own.undo(limit)
        own.end(limit, 0)
        assert own.admit(limit) == before, "20 s brought back the one that stayed, and no more than there are"
    own.end(limit, 0)
    for _ in range(5):
        assert isinstance(own.admit(limit), bytes)
        own.end(limit, 0)
    assert isinstance(own.admit(limit), Exceeded)


def test_a_change_of_a_limit_keeps_what_was_used() -> None:
    own = throttle()
    assert isinstance(own.admit((rate(rpm=1),)), bytes)
    assert isinstance(own.admit((rate(rpm=1),)), Exceeded)
    assert isinstance(own.admit((rate(rpm=0, concurrency=9),)), bytes)
    assert isinstance(own.admit((rate(rpm=1),)), Exceeded)


def test_where_the_table_is_full_each_worker_counts_for_itself() -> None:
    own = throttle(Table(1, rows=4))
    limits = [(rate(f"key_{number}", rpm=1),) for number in range(PROBES_MAX)]
    assert all(isinstance(own.admit(limit), bytes) for limit in limits)
    assert all(isinstance(own.admit(limit), Exceeded) for limit in limits)
    for limit in limits:
        own.end(limit, 5)


@pytest.mark.parametrize("tokens", [0, 10**9])
def test_an_overdraft_is_bounded(tokens: int) -> None:
    """A thousand million tokens against one a minute: 64 bits are enough, and the row stays readable."""
    own = throttle()
    limit = (rate(tpm=1),)
    for _ in range(3):
        own.admit(limit)
        own.end(limit, tokens)
    assert isinstance(own.admit(limit), bytes) is (tokens == 0)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, b"0ms"),
        (1, b"1ms"),
        (20_000, b"20ms"),
        (1_500_000, b"1.5s"),
        (60_000_000, b"1m0s"),
        (61_007_000, b"1m1.007s"),
    ],
)
def test_durations_are_written_as_openai_does(us: int, text: bytes) -> None:
    assert duration(us) == text
