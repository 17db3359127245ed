"""Unassigned amounts and carries become whole units for Stripe and new carries. Pure.

Invariant: units × 10⁶ + carry out = carry in + Σ of the covered deltas, batch after batch; no unit is made of usage of
another hour than its batch's. A unit is 10⁻⁶ of the currency's major unit, since Stripe counts whole numbers and a
token can cost less than that; what is left below a unit is carried into the customer's next batch.

What is due: a window whose hour is over, always, so that its remainder moves on; a running window, once it holds a
unit and nothing of the customer waits to be sent. So Stripe sees usage within a push interval, and while Stripe is
away a customer gets one batch per hour, and not one per interval. `is_closing` takes running windows as they are.

A correction may leave an hour below zero (carry included). Stripe's count can not be lowered by a negative event here
(`units >= 0`: a negative one would lower the total of a period that may be closed), so the hour waits, unassigned, and
is paid for by the customer's next hours: each is added to the debt until the sum is no longer negative, and that
hour's batch covers them all. Its units are then never more than that hour's own usage plus the carry. A debt that no
usage follows stays visible as a negative unassigned amount in `weir stripe status`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from billing.clock import HOUR_US, SECOND_US, Instant
from billing.ledger.outbox import Batch, Delta, Plan, State, Tail
from billing.limits import STRIPE_UNITS_PER_EVENT_MAX
from billing.money import PICO_PER_MICRO
from billing.stripe_sync.retry import TIMESTAMP_AGE_US_MAX

PICO_PER_UNIT = PICO_PER_MICRO
HOUR_S = HOUR_US // SECOND_US


def plan(
    deltas: Sequence[Delta],
    tails: Mapping[str, Tail],
    now: Instant,
    event_name: str,
    *,
    is_closing: bool = False,
    first_period_s: int | None = None,
) -> Plan:
    """Plan the batches of all customers in `deltas`, which are grouped by customer, windows in order.

    `first_period_s` is given when a customer is linked: see `timestamp`.
    """
    batches: list[Batch] = []
    assigned: list[Delta] = []
    for customer_id, of_customer in groupby(deltas, key=lambda delta: delta.customer_id):
        lane = _Lane(tails[customer_id], now, event_name, first_period_s, is_closing=is_closing)
        for _, window in groupby(of_customer, key=lambda delta: delta.window_start):
            lane.add(tuple(window))
        batches += lane.batches
        assigned += lane.assigned
    return Plan(tuple(batches), tuple(assigned))


class _Lane:
    """One customer's chain while it is planned: the debt of windows below zero, the carry, the next seq."""

    def __init__(
        self, tail: Tail, now: Instant, event_name: str, first_period_s: int | None, *, is_closing: bool
    ) -> None:
        self._seq = tail.seq
        self._carry: int = tail.carry
        self._is_waiting = tail.is_waiting
        self._now = now
        self._event_name = event_name
        billed_s = None if tail.billed_until is None else tail.billed_until // SECOND_US
        opens_s = [each_s for each_s in (first_period_s, billed_s) if each_s is not None]
        self._open_s = max(opens_s, default=None)
        self._is_closing = is_closing
        self._debt: tuple[Delta, ...] = ()
        self.batches: list[Batch] = []
        self.assigned: list[Delta] = []

    def add(self, window: tuple[Delta, ...]) -> None:
        """Plan the customer's next window, if it is due."""
        covered = self._debt + window
        total = self._carry + sum(delta.amount for delta in covered)
        if not self._is_due(window[0].window_start, total):
            return
        if total < 0:
            self._debt = covered
            return
        units, carry = divmod(total, PICO_PER_UNIT)
        for part, is_last in _parts(units):
            covers = _covers(covered, window[0].window_start) if is_last else "[]"
            self._append(window[0], part, carry if is_last else self._carry, covers)
        self._debt = ()
        self.assigned += covered

    def _is_due(self, window_start: int, total: int) -> bool:
        if window_start > self._now:
            return False
        if self._is_closing or window_start + HOUR_US <= self._now:
            return True
        return total >= PICO_PER_UNIT and not self._is_waiting

    def _append(self, of: Delta, units: int, carry: int, covers: str) -> None:
        self._seq += 1
        timestamp_s = timestamp(of.window_start, self._now, self._open_s)
        identifier = _identifier(of.customer_id, self._seq, (of.window_start, timestamp_s, units, covers, self._now))
        self.batches.append(
            Batch(
                id=identifier,
                customer_id=of.customer_id,
                seq=self._seq,
                stripe_customer_id=of.stripe_customer_id,
                event_name=self._event_name,
                idempotency_key=identifier,
                window_start=of.window_start,
                timestamp_s=timestamp_s,
                units=units,
                carry_in_pico=self._carry,
                carry_pico=carry,
                covers=covers,
                state=State.PENDING if units else State.CARRIED,
                attempts=0,
                created_at=self._now,
                first_sent_at=None,
                next_attempt_at=self._now,
                settled_at=None if units else self._now,
                last_answer=None,
            )
        )
        self._carry = carry


def timestamp(window_start: int, now: Instant, open_s: int | None = None) -> int:
    """Return the meter event's time: in the window, and not in the future.

    Stripe takes up to 5 minutes in the future, but an event of the next billing period would be billed there.

    `open_s` is the start of the earliest period that can still be invoiced: usage from before it (from before the
    customer was linked, or of a period whose invoice is finalized) would be counted and stand on no invoice. It is
    carried forward to that start, and the batch goes on naming the hour in which it happened. Beyond the 35 days it
    keeps its own time, and so is held for review and not suddenly invoiced.
    """
    start_s = window_start // SECOND_US
    inside_s = max(start_s, min(now // SECOND_US, start_s + HOUR_S - 1))
    is_recent = now - inside_s * SECOND_US <= TIMESTAMP_AGE_US_MAX
    return max(inside_s, open_s) if open_s is not None and is_recent else inside_s


def _parts(units: int) -> Iterator[tuple[int, bool]]:
    """Split what exceeds Stripe's 15 digits; the last part, which may be 0 only when alone, is marked.

    The parts before the last pass the carry on as it came and cover nothing: the last one covers all.
    """
    while units > STRIPE_UNITS_PER_EVENT_MAX:
        yield STRIPE_UNITS_PER_EVENT_MAX, False
        units -= STRIPE_UNITS_PER_EVENT_MAX
    yield units, True


def _covers(deltas: Iterable[Delta], window_start: int) -> str:
    entries: list[list[str | int]] = []
    for delta in deltas:
        entry: list[str | int] = [delta.api_key_id, delta.model, delta.shard, delta.window_seq]
        entries.append(entry if delta.window_start == window_start else [*entry, delta.window_start])
    return json.dumps(entries, ensure_ascii=False)


def _identifier(customer_id: str, seq: int, content: tuple[object, ...]) -> str:
    """Return the meter event's identifier: deterministic, at most 100 characters, without a dot.

    The digest of the content guards against a database that was restored from a backup: its seqs come again, for other
    usage, and Stripe's "already exists" would be taken for a delivery.
    """
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    identifier = f"weir-{customer_id}-{seq}-{digest}"
    assert len(identifier) <= 100, "Stripe's identifiers have at most 100 characters"
    return identifier
