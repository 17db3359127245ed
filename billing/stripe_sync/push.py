"""Sends usage to Stripe: close windows into batches, claim, send, record; one pusher at a time, one lane per customer.

Invariant: each transition is one transaction, and a crash between any two of them loses nothing and counts nothing
twice. Windows and batches are written together (`outbox.append`); a batch is `sending`, with the time of its first
sending, before the first byte leaves; so after a crash it is known that it may have been counted, and it is sent again
under the same identifier and key, for 23 hours.

It goes in waves: up to LANES batches of different customers (a few hundred by the stream, which `transport` takes for a
large backlog) are claimed in one transaction, sent at once, and recorded in one transaction. So no two events of a
customer are in flight (Stripe answers 409), and a wave costs two commits.
A customer whose event has to be sent again is left alone for the rest of the round: its next would fare the same. And
a wave in which nothing was settled ends the round: Stripe is away, or limits us, or refuses the key.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from billing.clock import SECOND_US, Clock, Instant
from billing.config import Config
from billing.errors import RefusedError
from billing.ledger import outbox, periods, repairs, stripe_objects
from billing.ledger.database import Connection, Database
from billing.ledger.outbox import Batch, Claim, Delta, Outcome, Plan, State
from billing.ledger.stripe_objects import Kind
from billing.stripe_sync import batches, invoices, retry, transport
from billing.stripe_sync.lanes import Lanes, Pace
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.retry import Answer
from billing.stripe_sync.token_lanes import TokenLanes
from billing.stripe_sync.token_parts import Tariffs
from billing.stripe_sync.transport import Call

logger = logging.getLogger("weir.stripe")

LANES = 32
STREAM_ROWS_MIN = 2_000
"""Batches that are due at once, from which on the meter event stream takes them; so many are read at a time."""

RELEASE_ROWS_MAX = 10_000
SENDS_PER_S_LIVE = 500
SENDS_PER_S_TEST = 20
"""Stripe takes 1,000 meter events a second in live mode, and 25 requests a second in a sandbox."""

UNDELIVERED = (State.PENDING, State.SENDING, State.UNCERTAIN, State.REJECTED, State.HELD)


@dataclass(frozen=True, slots=True)
class Sent:
    """One attempt: the batch, Stripe's answer, and what it came to."""

    batch: Batch
    answer: Answer
    outcome: Outcome

    @property
    def is_settled(self) -> bool:
        """Whether the batch needs no further attempt."""
        return self.outcome.settled_at is not None


def _pass_by(_point: str) -> None:
    """What the product does at each point."""


@dataclass(frozen=True, slots=True)
class Pusher:
    """How to push: the port, the clock, the pace, and what to ask between steps.

    `reached` is told each point between two transitions, by name: "planned", "claimed", "answered", "recorded". The
    product does nothing there; the fault tests end the process.
    """

    database: Database
    port: StripePort
    event_name: str
    now: Clock
    sends_per_s: int
    is_stopping: Callable[[], bool] = lambda: False
    reached: Callable[[str], None] = _pass_by
    plan_rows_max: int = outbox.PENDING_ROWS_MAX
    tokens: TokenLanes | None = None
    stream_rows_min: int = STREAM_ROWS_MIN

    def run(self, *, is_closing: bool = False) -> list[Sent]:
        """Do one round, as the elected pusher: plan what is due, send what is due; return every attempt.

        `is_closing` closes running windows too, and does not wait for retries that are due later. Raises RefusedError
        before the first `weir stripe setup`, since without a meter Stripe would refuse every event for good.
        """
        with self.database.reading() as conn:
            if Kind.METER not in stripe_objects.known(conn):
                raise RefusedError("there is no meter at Stripe yet; run `weir stripe setup` first")
            late = periods.late(conn, self.now())
        self.plan(is_closing=is_closing, waiting=invoices.learn(self.database, self.port, late))
        return self.send(is_everything=is_closing)

    def plan(self, *, is_closing: bool = False, waiting: Collection[str] = ()) -> int:
        """Turn what is due into batches, a transaction for each thousand rows; return how many batches.

        Customers in `waiting` have late usage of which nobody knows yet to which period it can go: theirs stays.
        """
        count, after = 0, ""
        while not self.is_stopping():
            tariffs = self._tariffs(after)
            with self.database.writing() as conn:
                found, cut_at = outbox.pending(conn, after, self.plan_rows_max, is_waiting=is_closing)
                deltas = [delta for delta in found if delta.customer_id not in waiting]
                tails = outbox.tails(conn, sorted({delta.customer_id for delta in deltas}))
                plan = batches.plan(deltas, tails, self.now(), self.event_name, is_closing=is_closing, tariffs=tariffs)
                outbox.append(conn, plan)
            count += len(plan.batches)
            self.reached("planned")
            if cut_at is None:
                break
            after = _next_after(after, cut_at, found, plan)
        return count

    def _tariffs(self, after: str) -> Tariffs | None:
        """Return how the next page of customers is billed by tokens, None in amount mode; Stripe may be asked."""
        if self.tokens is None:
            return None
        with self.database.reading() as conn:
            deltas, _ = outbox.pending(conn, after, self.plan_rows_max, is_locking=False)
        return self.tokens.prepare(deltas)

    def send(self, *, is_everything: bool = False) -> list[Sent]:
        """Send what is due, wave by wave, until nothing is left or every lane waits; return every attempt."""
        sent: list[Sent] = []
        tried: set[str] = set()
        stopped: set[str] = set()
        has_stream = True
        with Lanes(partial(transport.send, self.port, Pace(self.sends_per_s)), LANES) as lanes:
            while not self.is_stopping():
                with self.database.reading() as conn:
                    due = outbox.due(
                        conn, self.now(), self.stream_rows_min, besides=stopped, is_everything=is_everything
                    )
                is_streaming = has_stream and len(due) >= self.stream_rows_min
                size = transport.STREAM_CALLS * transport.STREAM_EVENTS_MAX if is_streaming else LANES
                waves = list(transport.waves((batch for batch in due if batch.id not in tried), size))
                if not waves:
                    return sent
                for wave in waves:
                    allowed = [batch for batch in wave if batch.customer_id not in stopped]
                    results, is_refused = self._wave(lanes, allowed, is_streaming=is_streaming)
                    sent += results
                    if is_refused:
                        has_stream = False
                        break
                    tried |= {batch.id for batch in wave}
                    stopped |= {each.batch.customer_id for each in results if not each.is_settled}
                    is_in_vain = bool(results) and not any(each.is_settled for each in results)
                    if is_in_vain or self.is_stopping():
                        return sent
        return sent

    def _wave(
        self, lanes: Lanes[Call, list[Answer]], wave: Sequence[Batch], *, is_streaming: bool
    ) -> tuple[list[Sent], bool]:
        """Send one wave; return its attempts, and whether Stripe refused the stream as a whole."""
        groups = transport.calls(self._claimed(wave, is_streaming=is_streaming))
        self.reached("claimed")
        answers = list(transport.answered(groups, lanes.run(groups)))
        self.reached("answered")
        refused = {claim.batch.id for claim, answer in answers if transport.is_refused(claim, answer)}
        outcomes = [retry.outcome_of(claim, answer, self.now()) for claim, answer in answers]
        outcomes = [replace(each, next_attempt_at=self.now()) if each.id in refused else each for each in outcomes]
        with self.database.writing() as conn:
            outbox.settle(conn, outcomes)
        self.reached("recorded")
        sent = [Sent(claim.batch, answer, each) for (claim, answer), each in zip(answers, outcomes, strict=True)]
        _log(sent)
        return sent, is_streaming and bool(refused)

    def _claimed(self, wave: Sequence[Batch], *, is_streaming: bool) -> list[Claim]:
        """Mark what may be sent as being sent; hold what may not."""
        with self.database.writing() as conn:
            now = self.now()
            sendable = []
            for batch in self._in_open_periods(conn, wave, now):
                hold = retry.may_send(now, batch.first_sent_at, batch.timestamp_s)
                if hold is None:
                    sendable.append(batch)
                else:
                    outbox.hold(conn, batch, hold.reason, now)
                    logger.error("stripe.push.held", extra={"batch": batch.id, "reason": hold.reason})
            return outbox.claim(conn, transport.addressed(sendable, is_streaming=is_streaming), now)

    def _in_open_periods(self, conn: Connection, wave: Sequence[Batch], now: Instant) -> Iterator[Batch]:
        """Give what was never sent, and whose period was invoiced meanwhile, a time in the open one."""
        billed = periods.billed_until(conn, sorted({batch.customer_id for batch in wave}))
        for batch in wave:
            until = billed.get(batch.customer_id)
            is_closed = until is not None and batch.timestamp_s * SECOND_US < until
            is_recent = now - batch.timestamp_s * SECOND_US <= retry.TIMESTAMP_AGE_US_MAX
            if until is None or not is_closed or not is_recent or batch.first_sent_at is not None:
                yield batch
                continue
            key = retry.next_key(batch.identifier, batch.attempts)
            moved = replace(batch, timestamp_s=until // SECOND_US, idempotency_key=key)
            if repairs.retime(conn, batch, key, moved.timestamp_s, "carried forward: its invoice is finalized", now):
                yield moved

    def release_rejected(self) -> int:
        """Make what Stripe refused sendable again, once its cause is mended; return how many batches."""
        with self.database.writing() as conn:
            refused = outbox.in_state(conn, [State.REJECTED], RELEASE_ROWS_MAX)
            for batch in refused:
                repairs.send_again(conn, batch, retry.next_key(batch.identifier, batch.attempts), self.now())
        return len(refused)


def pusher(
    config: Config,
    database: Database,
    port: StripePort,
    now: Clock,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Pusher:
    """Return the pusher for a configuration; a test key has a sandbox's pace."""
    is_live = "_live_" in config.stripe.api_key
    pace = SENDS_PER_S_LIVE if is_live else SENDS_PER_S_TEST
    tokens = TokenLanes(config, database, port, now) if config.stripe.mode == "tokens" else None
    return Pusher(database, port, config.stripe.meter_event_name, now, pace, is_stopping, tokens=tokens)


def _next_after(after: str, cut_at: str, deltas: Sequence[Delta], plan: Plan) -> str:
    """Where to go on when the list was cut at a customer: with it, unless it was seen and nothing of it was due.

    What was assigned is gone from the list, so the same customer is seen again with its next windows.
    """
    is_seen = any(delta.customer_id == cut_at for delta in deltas)
    if is_seen and not any(delta.customer_id == cut_at for delta in plan.assigned):
        return cut_at
    return max((delta.customer_id for delta in deltas if delta.customer_id != cut_at), default=after)


def _log(sent: Iterable[Sent]) -> None:
    """One line for each attempt; what needs a person is an error."""
    for each in sent:
        fields = {
            "batch": each.batch.id,
            "customer_id": each.batch.customer_id,
            "units": each.batch.units,
            "attempt": each.batch.attempts,
            "state": str(each.outcome.state),
            "answer": each.answer.text,
        }
        if each.outcome.state is State.ACCEPTED:
            logger.info("stripe.push.sent", extra=fields)
        elif each.answer.status in (401, 403):
            logger.error("stripe.push.key_refused", extra=fields | {"advice": "check STRIPE_API_KEY"})
        elif each.outcome.state in (State.REJECTED, State.HELD):
            logger.error("stripe.push.refused", extra=fields)
        else:
            logger.warning("stripe.push.again", extra=fields)
