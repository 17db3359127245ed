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

In tokens mode (`tariffs`) an hour's usage becomes a batch for each of its rates, in tokens, and a token's price is the
unit; the carry passes by. What is no whole number of tokens at a price becomes an amount, as above; so does all usage
of an hour that has to pay a debt. What waits for its meter waits, and the customer's later hours with it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from billing.clock import HOUR_US, SECOND_US, Instant
from billing.ledger.outbox import Batch, Delta, Plan, State, Tail
from billing.limits import STRIPE_UNITS_PER_EVENT_MAX
from billing.money import PICO_PER_MICRO
from billing.stripe_sync.retry import TIMESTAMP_AGE_US_MAX
from billing.stripe_sync.token_parts import Rate, Tariff, Tariffs

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
    tariffs: Tariffs | None = None,
) -> Plan:
    """Plan the batches of all customers in `deltas`, which are grouped by customer, windows in order.

    `first_period_s` is given when a customer is linked: see `timestamp`. In tokens mode only customers with a tariff
    get batches.
    """
    batches: list[Batch] = []
    assigned: list[Delta] = []
    for customer_id, of_customer in groupby(deltas, key=lambda delta: delta.customer_id):
        opens_s = first_period_s
        if tariffs is not None:
            tariff = tariffs.of_customers.get(customer_id)
            if tariff is None:
                continue
            opens_s = tariff.amount_opens_s
        lane = _Lane(tails[customer_id], now, event_name, opens_s, tariffs, is_closing=is_closing)
        for _, window in groupby(of_customer, key=lambda delta: delta.window_start):
            lane.add(tuple(window))
        batches += lane.batches
        assigned += lane.assigned
    return Plan(tuple(batches), tuple(assigned))


class _Lane:
    """One customer's chain while it is planned: the debt of windows below zero, the carry, the next seq."""

    def __init__(
        self,
        tail: Tail,
        now: Instant,
        event_name: str,
        first_period_s: int | None,
        tariffs: Tariffs | None,
        *,
        is_closing: bool,
    ) -> None:
        self._tariffs = tariffs
        self._is_stuck = False
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
        if self._is_stuck or not self._is_due(window[0].window_start, total):
            return
        if total < 0:
            self._debt = covered
            return
        by_tokens = [] if self._debt or self._tariffs is None else _split(window, self._tariffs)
        if any(rate not in self._tariff(window).lanes for _, of_delta in by_tokens for rate in of_delta):
            self._is_stuck = True
            return
        taken = {id(delta) for delta, _ in by_tokens}
        rest = tuple(delta for delta in covered if id(delta) not in taken)
        if self._carry + sum(delta.amount for delta in rest) < 0:
            by_tokens, rest = [], covered
        self._add_tokens(window, by_tokens)
        if rest:
            self._add_amount(window[0], rest)
        self._debt = ()
        self.assigned += covered

    def _tariff(self, window: tuple[Delta, ...]) -> Tariff:
        assert self._tariffs is not None, "only tokens mode has tariffs"
        return self._tariffs.of_customers[window[0].customer_id]

    def _add_amount(self, of: Delta, covered: tuple[Delta, ...]) -> None:
        units, carry = divmod(self._carry + sum(delta.amount for delta in covered), PICO_PER_UNIT)
        amount = _Meter(self._event_name, PICO_PER_UNIT, self._open_s)
        for part, is_last in _parts(units):
            covers = _covers(covered, of.window_start) if is_last else "[]"
            self._append(of, amount, part, carry if is_last else self._carry, covers)

    def _add_tokens(self, window: tuple[Delta, ...], by_tokens: list[tuple[Delta, dict[Rate, int]]]) -> None:
        for rate in sorted({rate for _, of_delta in by_tokens for rate in of_delta}):
            concerned = [(delta, of_delta[rate]) for delta, of_delta in by_tokens if rate in of_delta]
            lane = self._tariff(window).lanes[rate]
            opens_s = lane.opens_s if self._open_s is None else max(lane.opens_s, self._open_s)
            meter = _Meter(lane.event_name, rate.unit_pico, opens_s)
            for part, is_last in _parts(sum(count for _, count in concerned)):
                covers = _covers((delta for delta, _ in concerned), window[0].window_start) if is_last else "[]"
                self._append(window[0], meter, part, self._carry, covers)

    def _is_due(self, window_start: int, total: int) -> bool:
        if window_start > self._now:
            return False
        if self._is_closing or window_start + HOUR_US <= self._now:
            return True
        return total >= PICO_PER_UNIT and not self._is_waiting

    def _append(self, of: Delta, meter: "_Meter", units: int, carry: int, covers: str) -> None:
        self._seq += 1
        timestamp_s = timestamp(of.window_start, self._now, meter.opens_s)
        identifier = _identifier(of.customer_id, self._seq, (of.window_start, timestamp_s, units, covers, self._now))
        self.batches.append(
            Batch(
                id=identifier,
                customer_id=of.customer_id,
                seq=self._seq,
                stripe_customer_id=of.stripe_customer_id,
                event_name=meter.event_name,
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
                unit_pico=meter.unit_pico,
            )
        )
        self._carry = carry


@dataclass(frozen=True, slots=True)
class _Meter:
    """Where a batch goes, what one of its units is worth, and since when that is billed."""

    event_name: str
    unit_pico: int
    opens_s: int | None


def _split(window: Iterable[Delta], tariffs: Tariffs) -> list[tuple[Delta, dict[Rate, int]]]:
    """Return those deltas that are billed by tokens, with what they are made of."""
    found = []
    for delta in window:
        of_delta = tariffs.parts(delta)
        without = tariffs.of_customers[delta.customer_id].without
        if of_delta and not without & of_delta.keys():
            found.append((delta, of_delta))
    return found


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
