"""Amounts become units and carries: by hand, and as a property over any plan."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from billing.clock import HOUR_US, SECOND_US, Instant
from billing.ledger.outbox import Delta, Plan, State, Tail
from billing.limits import STRIPE_UNITS_PER_EVENT_MAX
from billing.money import PICO_PER_MICRO, Pico, split
from billing.stripe_sync import batches

NOON = Instant(1_772_366_400 * SECOND_US)
LATER = Instant(NOON + HOUR_US + 5 * SECOND_US)
FRESH = Tail(seq=0, carry=Pico(0), is_waiting=False)
CUSTOMER = "cust_" + 32 * "f"


def delta(amount: int, *, window: int = NOON, key: str = "key_1", customer: str = CUSTOMER, seq: int = 0) -> Delta:
    """What a row of this hour holds beyond what was assigned."""
    return Delta(customer, "cus_1", Instant(window), key, "m", 0, seq, *split(amount))


def planned(*deltas: Delta, tail: Tail = FRESH, now: Instant = LATER, is_closing: bool = False) -> Plan:
    """The plan for one customer."""
    return batches.plan(deltas, {CUSTOMER: tail}, now, "weir_usage_micro", is_closing=is_closing)


def test_a_window_that_is_over_becomes_whole_units_and_a_carry() -> None:
    """By hand: 0.999999 carried + 2.000002 used = 3.000001 units: 3 are sent, a picounit of 10⁻⁶ is carried."""
    plan = planned(delta(2_000_002), tail=Tail(seq=4, carry=Pico(999_999), is_waiting=False))
    (batch,) = plan.batches
    assert (batch.seq, batch.units, batch.carry_in_pico, batch.carry_pico) == (5, 3, 999_999, 1)
    assert (batch.state, batch.window_start, batch.settled_at) == (State.PENDING, NOON, None)
    assert json.loads(batch.covers) == [["key_1", "m", 0, 0]]
    assert plan.assigned == (delta(2_000_002),)


def test_a_window_below_a_unit_is_carried_and_sends_nothing() -> None:
    """Its remainder moves on, so that two hours of 0.6 units make one unit and 0.2."""
    plan = planned(delta(600_000), delta(600_000, window=NOON + HOUR_US), now=Instant(NOON + 2 * HOUR_US))
    assert [(b.units, b.carry_pico, b.state) for b in plan.batches] == [
        (0, 600_000, State.CARRIED),
        (1, 200_000, State.PENDING),
    ]
    assert plan.batches[0].settled_at == NOON + 2 * HOUR_US


def test_one_batch_holds_all_rows_of_a_window_and_no_row_of_another() -> None:
    """Two keys in one hour are one meter event; the next hour is another."""
    rows = (delta(10**6), delta(10**6, key="key_2", seq=7), delta(10**6, window=NOON + HOUR_US))
    plan = planned(*rows, now=Instant(NOON + 2 * HOUR_US))
    assert [batch.units for batch in plan.batches] == [2, 1]
    assert json.loads(plan.batches[0].covers) == [["key_1", "m", 0, 0], ["key_2", "m", 0, 7]]


def test_a_running_window_is_due_with_a_unit_and_nothing_waiting() -> None:
    """Below a unit, or while a batch of the customer waits to be sent, it stays open."""
    during = Instant(NOON + 600 * SECOND_US)
    assert planned(delta(999_999), now=during).batches == ()
    assert planned(delta(10**6), now=during).batches[0].units == 1
    assert planned(delta(10**6), now=during, tail=replace(FRESH, is_waiting=True)).batches == ()


def test_the_end_of_the_hour_belongs_to_the_next() -> None:
    """A microsecond before the end a window runs; at the end it is over."""
    assert planned(delta(1), now=Instant(NOON + HOUR_US - 1)).batches == ()
    assert planned(delta(1), now=Instant(NOON + HOUR_US)).batches[0].state is State.CARRIED


def test_closing_takes_running_windows_as_they_are() -> None:
    """Below a unit, and with batches waiting."""
    plan = planned(delta(1), now=NOON, tail=replace(FRESH, is_waiting=True), is_closing=True)
    assert [batch.state for batch in plan.batches] == [State.CARRIED]


def test_a_window_of_the_future_is_never_due() -> None:
    """A host whose clock is ahead recorded it; its time will come."""
    assert planned(delta(10**9, window=NOON + HOUR_US), now=NOON, is_closing=True).batches == ()


def test_the_timestamp_lies_in_the_window_and_not_in_the_future() -> None:
    """Now while the hour runs; its last second afterwards; its start if the clock is behind it."""
    start = NOON // SECOND_US
    assert batches.timestamp(NOON, Instant(NOON + 90 * SECOND_US)) == start + 90
    assert batches.timestamp(NOON, LATER) == start + 3_599
    assert batches.timestamp(NOON, Instant(NOON - HOUR_US)) == start


def test_usage_from_before_the_link_is_timed_at_the_first_period() -> None:
    """Stripe invoices nothing that lies in no period; what it no longer takes keeps its time."""
    start = NOON // SECOND_US
    first = start + 5_000
    assert batches.timestamp(NOON, LATER, first) == first
    assert batches.timestamp(NOON, LATER, start + 100) == start + 3_599
    oldest = Instant(35 * 24 * HOUR_US + NOON + 3_599 * SECOND_US)
    assert batches.timestamp(NOON, oldest, first) == first
    assert batches.timestamp(NOON, Instant(oldest + 1), first) == start + 3_599


def test_a_window_below_zero_waits_and_is_paid_for_by_the_next() -> None:
    """A correction of 5 units: the next hour's 3 do not pay for it, the one after has 4: 2 are sent."""
    rows = (
        delta(-5_000_000),
        delta(3_000_000, window=NOON + HOUR_US),
        delta(4_000_000, window=NOON + 2 * HOUR_US, seq=9),
    )
    assert planned(*rows[:2], now=Instant(NOON + 2 * HOUR_US)) == Plan((), ())
    plan = planned(*rows, now=Instant(NOON + 3 * HOUR_US))
    (batch,) = plan.batches
    assert (batch.units, batch.window_start) == (2, NOON + 2 * HOUR_US)
    assert plan.assigned == rows
    assert json.loads(batch.covers) == [
        ["key_1", "m", 0, 0, NOON],
        ["key_1", "m", 0, 0, NOON + HOUR_US],
        ["key_1", "m", 0, 9],
    ]


def test_a_correction_within_the_carry_is_taken_from_it() -> None:
    """0.6 carried − 0.5 = 0.1: no unit, a smaller carry."""
    (batch,) = planned(delta(-500_000), tail=Tail(1, Pico(600_000), is_waiting=False)).batches
    assert (batch.units, batch.carry_pico, batch.state) == (0, 100_000, State.CARRIED)


def test_what_exceeds_fifteen_digits_is_split() -> None:
    """The parts add up, pass the carry on, and only the last covers events."""
    units = 2 * STRIPE_UNITS_PER_EVENT_MAX + 7
    plan = planned(delta(units * PICO_PER_MICRO + 3), tail=Tail(0, Pico(5), is_waiting=False))
    assert [batch.units for batch in plan.batches] == [STRIPE_UNITS_PER_EVENT_MAX, STRIPE_UNITS_PER_EVENT_MAX, 7]
    assert [(batch.carry_in_pico, batch.carry_pico) for batch in plan.batches] == [(5, 5), (5, 5), (5, 8)]
    assert [batch.covers == "[]" for batch in plan.batches] == [True, True, False]
    exact = planned(delta(STRIPE_UNITS_PER_EVENT_MAX * PICO_PER_MICRO))
    assert [batch.units for batch in exact.batches] == [STRIPE_UNITS_PER_EVENT_MAX]


def test_the_identifier_is_deterministic_short_and_the_first_key() -> None:
    """Equal plans give equal ids; other usage under the same seq, after a restored backup, gives another."""
    (batch,) = planned(delta(10**6), tail=Tail(10**17, Pico(0), is_waiting=False)).batches
    assert planned(delta(10**6), tail=Tail(10**17, Pico(0), is_waiting=False)).batches == (batch,)
    assert len(batch.id) <= 100
    assert batch.id == batch.idempotency_key
    assert "." not in batch.id
    assert planned(delta(2 * 10**6), tail=Tail(10**17, Pico(0), is_waiting=False)).batches[0].id != batch.id


amounts = st.one_of(
    st.integers(0, 3 * 10**6), st.integers(-(10**7), 10**7), st.integers(0, 3 * 10**21), st.integers(10**15, 10**20)
)
windows = st.lists(st.lists(amounts, min_size=1, max_size=3), min_size=1, max_size=6)


@given(windows, st.integers(0, 999_999), st.integers(-2, 8), st.booleans(), st.booleans())
def test_nothing_is_lost_made_or_moved_whatever_is_planned(
    hours: list[list[int]], carry: int, elapsed: int, is_waiting: bool, is_closing: bool
) -> None:
    """units × 10⁶ + carry out = carry in + Σ covered, in every batch; no unit is of another hour's usage."""
    deltas = [
        delta(amount, window=NOON + number * HOUR_US, key=f"key_{index}", seq=index)
        for number, rows in enumerate(hours)
        for index, amount in enumerate(rows)
    ]
    now = Instant(NOON + elapsed * HOUR_US // 2)
    plan = planned(*deltas, tail=Tail(3, Pico(carry), is_waiting), now=now, is_closing=is_closing)
    units = sum(batch.units for batch in plan.batches)
    last = plan.batches[-1].carry_pico if plan.batches else carry
    assert units * PICO_PER_MICRO + last == carry + sum(each.amount for each in plan.assigned)
    assert [batch.seq for batch in plan.batches] == list(range(4, 4 + len(plan.batches)))
    assert len(set(plan.assigned)) == len(plan.assigned)
    assert {batch.id for batch in plan.batches if batch.units > STRIPE_UNITS_PER_EVENT_MAX} == set()
    for number, rows in enumerate(hours):
        window = NOON + number * HOUR_US
        of_window = [batch for batch in plan.batches if batch.window_start == window]
        if of_window:
            own = sum(rows) + of_window[0].carry_in_pico
            assert 0 <= sum(batch.units for batch in of_window) * PICO_PER_MICRO <= max(own, 0)


@given(windows, st.integers(0, 999_999))
def test_closing_leaves_nothing_open_but_debt(hours: list[list[int]], carry: int) -> None:
    """When all hours are over, what stays unassigned is negative in sum, together with the carry."""
    deltas = [
        delta(amount, window=NOON + number * HOUR_US, key=f"key_{index}")
        for number, rows in enumerate(hours)
        for index, amount in enumerate(rows)
    ]
    plan = planned(*deltas, tail=Tail(0, Pico(carry), is_waiting=False), now=Instant(NOON + 99 * HOUR_US))
    left = [each.amount for each in deltas if each not in plan.assigned]
    last = plan.batches[-1].carry_pico if plan.batches else carry
    assert not left or sum(left) + last < 0
