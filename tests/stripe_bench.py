"""A ledger on one engine, the Stripe double, and one clock for both: what the tests of both directions stand on.

The clock is the double's: product and Stripe agree on the time unless a test says otherwise. `Bench.audit` proves I6
from the rows alone, and from the double's own list of what it accepted.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from billing import ids
from billing.clock import HOUR_US, SECOND_US, Instant, hour_start
from billing.config import Config, Dunning, Stripe
from billing.config import Database as DatabaseSection
from billing.ledger import accounts, events, migrate, outbox, periods, schema
from billing.ledger.accounts import Customer
from billing.ledger.database import Database
from billing.ledger.outbox import Batch, State
from billing.money import PICO_PER_MICRO, join
from billing.stripe_sync import customers, reconcile, reported, setup
from billing.stripe_sync.client import SdkClient
from billing.stripe_sync.findings import Report
from billing.stripe_sync.push import Pusher, Sent
from billing.stripe_sync.reconcile import Reconciler
from billing.usage import UsageEvent
from tests.emulators.stripe_double import StripeDouble

NOON = 1_772_366_400
"""2026-03-01T12:00:00Z: early in a billing month, on a whole hour."""

SECRET = "whsec_bench"
SENDS_PER_S = 100_000


class CrashError(BaseException):
    """The process dies here: no handler of the product may catch it."""


class Bench:
    """One account of Stripe's and one ledger."""

    def __init__(self, url: str, double: StripeDouble, *, grace_days: int = 3) -> None:
        self.double = double
        self.unheard: set[str] = set()
        """Batches that Stripe accepted and lost again, by a test's own hand."""
        self.config = Config(
            database=DatabaseSection(url=url),
            stripe=Stripe(
                api_key=double.api_key, api_base=double.url, meter_events_base=double.url, webhook_secret=SECRET
            ),
            dunning=Dunning(grace_days=grace_days),
        )
        self.database = Database(url)
        self.port = SdkClient(double.api_key, double.url, double.url, (5, 5))

    def now(self) -> Instant:
        """The double's time."""
        return Instant(self.double.clock.now() * SECOND_US)

    def prepare(self) -> None:
        """Make the schema, and what setup makes at Stripe."""
        migrate.upgrade(self.database, now=self.now)
        setup.run(self.config, self.database, self.port, self.now(), "test")

    def add(self, name: str, *, is_linked: bool = True) -> Customer:
        """Add a customer of ours, and of Stripe's if it is linked."""
        with self.database.writing() as conn:
            added = accounts.add_customer(conn, name, None, self.now(), "test")
        if is_linked:
            customers.create_for(self.config, self.database, added, self.now(), "test")
        return self.account(added.id)

    def account(self, customer_id: str) -> Customer:
        """The customer as it is now."""
        with self.database.reading() as conn:
            return accounts.get_customer(conn, customer_id)

    def record(
        self, customer_id: str, amount_pico: int, *, at: int | None = None, key: str = "key_1", shard: int = 0
    ) -> UsageEvent:
        """Record one event of this amount in the hour of `at` (now)."""
        return self.record_all(customer_id, [amount_pico], at=at, key=key, shard=shard)[0]

    def record_all(
        self, customer_id: str, amounts: list[int], *, at: int | None = None, key: str = "key_1", shard: int = 0
    ) -> list[UsageEvent]:
        """Record events in one transaction, as the gateway's recorder does."""
        finished = self.now() if at is None else Instant(at)
        rows = [_event(customer_id, amount, finished, key) for amount in amounts]
        with self.database.writing() as conn:
            events.append(conn, rows, shard)
        return rows

    def pusher(self, reached: Callable[[str], None] = lambda point: None, port: SdkClient | None = None) -> Pusher:
        """A pusher on this bench's clock, at any pace."""
        chosen = self.port if port is None else port
        event_name = self.config.stripe.meter_event_name
        return Pusher(self.database, chosen, event_name, self.now, SENDS_PER_S, lambda: False, reached)

    def push(self, *, is_closing: bool = False) -> list[Sent]:
        """One round of an elected pusher."""
        with self.database.elected("push") as is_mine:
            assert is_mine, "nobody else pushes on this bench"
            return self.pusher().run(is_closing=is_closing)

    def reconciler(self, reached: Callable[[str], None] = lambda point: None) -> Reconciler:
        """A reconciler on this bench's clock, at any pace."""
        name = self.config.stripe.meter_event_name
        return Reconciler(self.database, self.port, name, self.now, SENDS_PER_S, lambda: False, reached)

    def reconcile(self, *, is_repairing: bool = False, since: Instant | None = None) -> Report:
        """One run, as `weir stripe reconcile` does it."""
        return reconcile.run(self.reconciler(), self.pusher(), since, is_repairing=is_repairing)

    def batches(self, customer_id: str | None = None) -> list[Batch]:
        """All batches, or a customer's, in the order of their seq."""
        with self.database.reading() as conn:
            found = outbox.in_state(conn, list(State), 100_000)
        chosen = [batch for batch in found if customer_id in (None, batch.customer_id)]
        return sorted(chosen, key=lambda batch: (batch.customer_id, batch.seq))

    def recorded_pico(self, customer_id: str) -> int:
        """Σ amounts of the customer's events, from the events themselves."""
        table = schema.usage_events
        with self.database.reading() as conn:
            query = sa.select(table.c.amount_pico).where(table.c.customer_id == customer_id)
            return sum(conn.execute(query).scalars())

    def assigned_pico(self, customer_id: str) -> int:
        """Σ amounts assigned, from the rollups."""
        table = schema.usage_hourly
        with self.database.reading() as conn:
            query = sa.select(table.c.assigned_micro, table.c.assigned_pico).where(table.c.customer_id == customer_id)
            return sum(join(row[0], row[1]) for row in conn.execute(query))

    def stripe_units(self, customer_id: str) -> int:
        """What the double counted for the customer."""
        return self.double.meter_total(self.account(customer_id).stripe_customer_id)

    def audit(self, customer_id: str) -> None:
        """Prove I6 for a customer, whatever states its batches are in."""
        batches = self.batches(customer_id)
        with self.database.reading() as conn:
            billed = periods.billed_until(conn, [customer_id]).get(customer_id)
        carry = 0
        for number, batch in enumerate(batches, start=1):
            assert batch.seq == number
            assert batch.carry_in_pico == carry
            carry = batch.carry_pico
            self._audit_times(batch, billed)
        units = sum(batch.units for batch in batches)
        assert units * PICO_PER_MICRO + carry == self.assigned_pico(customer_id)
        self._audit_covers(customer_id, batches)
        self._audit_delivery(customer_id, batches)

    def _audit_times(self, batch: Batch, billed: Instant | None) -> None:
        """In its hour; or later, at the start of the period that was open, if its own was invoiced."""
        start_s = batch.window_start // SECOND_US
        if batch.timestamp_s >= start_s + HOUR_US // SECOND_US:
            assert billed is not None
            assert start_s * SECOND_US < batch.timestamp_s * SECOND_US <= billed
            return
        assert start_s <= batch.timestamp_s
        assert batch.timestamp_s * SECOND_US <= batch.created_at

    def _audit_covers(self, customer_id: str, batches: list[Batch]) -> None:
        """Each batch's units and carry are those of exactly the events that it covers, and no event is in two."""
        table = schema.usage_events
        columns = (table.c.api_key_id, table.c.model, table.c.shard, table.c.window_seq, table.c.window_start)
        with self.database.reading() as conn:
            query = sa.select(*columns, table.c.amount_pico).where(table.c.customer_id == customer_id)
            rows = [tuple(row) for row in conn.execute(query)]
        amounts: dict[tuple[object, ...], int] = {}
        for row in rows:
            amounts[row[:5]] = amounts.get(row[:5], 0) + row[5]
        seen: set[tuple[object, ...]] = set()
        open_units, first_carry = 0, 0
        for batch in batches:
            first_carry = first_carry if open_units else batch.carry_in_pico
            covers = [
                tuple(each) if len(each) == 5 else (*each, batch.window_start) for each in json.loads(batch.covers)
            ]
            if not covers:
                open_units += batch.units
                continue
            assert not seen & set(covers)
            seen |= set(covers)
            covered = sum(amounts.get(cover, 0) for cover in covers)
            assert covered == (open_units + batch.units) * PICO_PER_MICRO + batch.carry_pico - first_carry
            open_units = 0

    def _audit_delivery(self, customer_id: str, batches: list[Batch]) -> None:
        """What the double counted is what was accepted, and perhaps what is in doubt; each once, in its hour."""
        stripe_customer = self.account(customer_id).stripe_customer_id
        arrived = [each for each in self.double.meter_events if each.customer == stripe_customer]
        arrived = [each for each in arrived if each.status == "counted"]
        by_id = {batch.id: batch for batch in batches}
        counted = [reported.named_by(each.identifier)[0] for each in arrived]
        assert len(set(counted)) == len(arrived), "a batch is counted once, under whichever identifier"
        for each in arrived:
            batch = by_id[reported.named_by(each.identifier)[0]]
            assert int(each.value) == batch.units
            if each.identifier == batch.identifier:
                assert each.timestamp == batch.timestamp_s
                assert batch.first_sent_at is not None, "what Stripe has counted can not be taken for never sent"
        delivered = {batch.id for batch in batches if batch.state in outbox.DELIVERED}
        assert delivered <= set(counted) | self.unheard


def _event(customer_id: str, amount_pico: int, finished: Instant, key: str) -> UsageEvent:
    return UsageEvent(
        id=ids.uuid7(),
        customer_id=customer_id,
        api_key_id=key,
        model="qwen3.5-9b",
        upstream="local",
        upstream_model="Qwen/Qwen3.5-9B",
        endpoint="/v1/chat/completions",
        started_at=finished,
        first_token_at=finished,
        finished_at=finished,
        outcome="completed",
        http_status=200,
        count_source="upstream",
        input_tokens=1,
        cached_input_tokens=0,
        output_tokens=1,
        reasoning_tokens=0,
        cost_pico=0,
        amount_pico=amount_pico,
        price_ref="quote_1",
        window_start=hour_start(finished),
    )


@contextmanager
def bench(url: str, *, now: int | None = NOON, grace_days: int = 3) -> Iterator[Bench]:
    """A prepared bench; at its end Stripe's own document must have found no fault in any request.

    With `now` None the double's time is the machine's, as `weir` processes need it.
    """
    with StripeDouble(now=now) as double:
        made = Bench(url, double, grace_days=grace_days)
        try:
            made.prepare()
            yield made
        finally:
            made.database.close()
        assert double.violations == []


def environment(made: Bench) -> dict[str, str]:
    """The environment of a `weir` process on this bench; it reads the machine's clock."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WEIR_", "STRIPE_"))},
        "WEIR_DATABASE__URL": made.config.database.url,
        "WEIR_STRIPE__API_BASE": made.double.url,
        "WEIR_STRIPE__METER_EVENTS_BASE": made.double.url,
        "WEIR_BILLING__PUSH_INTERVAL_S": "1",
        "STRIPE_API_KEY": made.double.api_key,
        "STRIPE_WEBHOOK_SECRET": SECRET,
    }


def weir_command(*arguments: str) -> list[str]:
    """The command line of a `weir` process."""
    return [sys.executable, "-c", "from proxy.main import main; main()", *arguments]
