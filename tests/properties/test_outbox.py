"""I6 under any interleaving of recording, pushing, faults and crashes; and the outbox's queries stay off old rows.

The double is Stripe, over a socket, behind the real SDK. A crash is an exception that no handler of the product
catches, raised between two transitions: what is in memory is gone, what is in the database stays.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from billing.clock import HOUR_US, Instant
from billing.ledger import inbox, outbox, schema
from billing.ledger.database import Database
from billing.ledger.outbox import State
from billing.money import PICO_PER_MICRO
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import NOON, Bench, CrashError, bench
from tests.support.examples import examples
from tests.support.postgres import PostgresServer

POINTS = ("planned", "claimed", "answered", "recorded")
FAULTS = (
    FaultKind.DROP_BEFORE_COMMIT,
    FaultKind.DROP_AFTER_COMMIT,
    FaultKind.CONFLICT,
    FaultKind.RATE_LIMITED,
    FaultKind.LOCK_TIMEOUT,
    FaultKind.SERVER_ERROR,
    FaultKind.SERVER_ERROR_AFTER_COMMIT,
    FaultKind.GARBAGE,
    FaultKind.TRUNCATED,
)
METER_EVENTS = "/v1/billing/meter_events"
MINUTES_MAX = 20 * 60
"""All of an example's time: below the 23 hours after which doubt is held, which other tests are about."""


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine."""
    with bench(database_url) as bench_:
        yield bench_


customers = st.integers(0, 1)
amounts = st.integers(0, 4_000_000)


class Outbox(RuleBasedStateMachine):
    """Two linked customers of one ledger, and everything that may happen to their usage on its way."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.customers = [self.bench.add(f"customer {id(self)} {number}").id for number in range(2)]
        self.minutes = 0

    def _use(self, who: int, amounts: list[int], *, hours_ago: int = 0, key: str = "key_1", shard: int = 0) -> None:
        at = self.bench.now() - hours_ago * HOUR_US
        self.bench.record_all(self.customers[who], amounts, at=at, key=key, shard=shard)

    @rule(
        who=customers,
        amounts=st.lists(amounts | st.integers(-3_000_000, 10**13), min_size=1, max_size=4),
        hours_ago=st.integers(0, 2),
        key=st.sampled_from(["key_1", "key_2"]),
        shard=st.integers(0, 1),
    )
    def record(self, who: int, amounts: list[int], hours_ago: int, key: str, shard: int) -> None:
        """Usage, late usage, corrections."""
        self._use(who, amounts, hours_ago=hours_ago, key=key, shard=shard)

    @precondition(lambda self: self.minutes < MINUTES_MAX)
    @rule(minutes=st.integers(1, 100))
    def wait(self, minutes: int) -> None:
        """Time passes at both ends."""
        self.minutes += minutes
        self.bench.double.clock.advance(minutes=minutes)

    @rule(who=customers, amount=amounts, is_closing=st.booleans())
    def push(self, who: int, amount: int, is_closing: bool) -> None:
        """Usage, and a round."""
        self._use(who, [amount])
        self.bench.push(is_closing=is_closing)

    @rule(
        who=customers,
        amount=amounts,
        kind=st.sampled_from(FAULTS),
        times=st.integers(1, 3),
        skip=st.integers(0, 2),
        is_closing=st.booleans(),
    )
    def push_through_faults(
        self, who: int, amount: int, kind: FaultKind, times: int, skip: int, is_closing: bool
    ) -> None:
        """Usage, what a network and a busy Stripe do from now on, and a round."""
        self._use(who, [amount])
        self.bench.double.fault(kind, METER_EVENTS, times=times, skip=skip, status=503 if skip else 500)
        self.bench.push(is_closing=is_closing)

    @rule(
        who=customers,
        amount=amounts,
        is_closing=st.booleans(),
        point=st.sampled_from(POINTS),
        number=st.integers(1, 2),
        kind=st.none() | st.sampled_from(FAULTS),
    )
    def push_and_crash(
        self, who: int, amount: int, is_closing: bool, point: str, number: int, kind: FaultKind | None
    ) -> None:
        """Usage, and a round that ends at the number-th passing of a point, in the middle of a fault perhaps."""
        self._use(who, [amount])
        if kind is not None:
            self.bench.double.fault(kind, METER_EVENTS)
        left = number

        def reached(here: str) -> None:
            nonlocal left
            left -= here == point
            if left == 0:
                raise CrashError

        with suppress(CrashError), self.bench.database.elected("push"):
            self.bench.pusher(reached).run(is_closing=is_closing)

    @invariant()
    def holds(self) -> None:
        """Σ units + carry = Σ assigned, and Stripe counts nothing that was not assigned."""
        for customer_id in self.customers:
            self.bench.audit(customer_id)

    def teardown(self) -> None:
        """After a push without faults, Stripe has the ledger's total to the unit, but for a debt that none paid for."""
        self.bench.double.clear_faults()
        self.bench.push(is_closing=True)
        for customer_id in self.customers:
            self.bench.audit(customer_id)
            recorded, assigned = self.bench.recorded_pico(customer_id), self.bench.assigned_pico(customer_id)
            units = self.bench.stripe_units(customer_id)
            assert units == assigned // PICO_PER_MICRO
            assert assigned == recorded or recorded < units * PICO_PER_MICRO
            states = {batch.state for batch in self.bench.batches(customer_id)}
            assert states <= {State.ACCEPTED, State.CARRIED}


def test_every_unit_reaches_stripe_once_in_its_hour_through_everything(made: Bench) -> None:
    """I6, whatever happens in whatever order."""
    machine = type("OutboxOnThisBench", (Outbox,), {"bench": made})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(7, 60),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_a_day_by_hand(made: Bench) -> None:
    """0.6 + 0.6 + 1.0000005 units in three hours: 0, then 1, then 1; 0.2000005 of a unit is carried."""
    acme = made.add("acme").id
    for hour, amount in enumerate((600_000, 600_000, 1_000_001)):
        made.record(acme, amount)
        made.double.clock.move_to(NOON + (hour + 1) * 3_600)
        made.push()
    assert [(batch.units, batch.carry_pico) for batch in made.batches(acme)] == [
        (0, 600_000),
        (1, 200_000),
        (1, 200_001),
    ]
    assert made.stripe_units(acme) == 2


def test_only_customers_linked_to_stripe_are_billed_there(made: Bench) -> None:
    """Others' usage stays unassigned until they are linked, and is then sent."""
    free = made.add("free", is_linked=False).id
    made.record(free, 5_000_000)
    made.push(is_closing=True)
    assert made.batches(free) == []


def test_a_trace_finds_the_batch_of_an_event_and_of_a_correction(made: Bench) -> None:
    """An event before and after an assignment, and a correction that a later hour paid for."""
    acme = made.add("acme").id
    first = made.record(acme, 2_000_000)
    made.push()
    second = made.record(acme, 3_000_000)
    correction = made.record(acme, -4_000_000, at=made.now() - HOUR_US)
    made.double.clock.advance(hours=1)
    third = made.record(acme, 5_000_000)
    made.push(is_closing=True)
    # The correction of 4 leaves the first hour's second batch (3) below zero; the next hour's 5 pay for both.
    found = []
    with made.database.reading() as conn:
        table = schema.usage_events
        for event in (first, second, correction, third):
            row = conn.execute(sa.select(table.c.shard, table.c.window_seq).where(table.c.id == event.id)).one()
            (batch,) = outbox.batches_of(conn, acme, event.window_start, "key_1", event.model, row[0], row[1])
            found.append((batch.seq, batch.units))
        assert outbox.batches_of(conn, acme, first.window_start, "key_1", first.model, 0, 99) == []
    assert found == [(1, 2), (2, 4), (2, 4), (2, 4)]


@pytest.mark.parametrize("rows_max", [2, 5, 21])
def test_many_rows_are_planned_in_several_transactions(made: Bench, rows_max: int) -> None:
    """More rows than one transaction takes, customers and windows cut anywhere, and debts that never move."""
    customers_ = {name: made.add(name).id for name in ("acme", "debtor", "slim", "thin", "zeta")}
    for name, customer_id in customers_.items():
        for hour in range(3):
            for number in range(1 if name in ("slim", "thin") else 4):
                amount = -1_000_000 if name == "debtor" else 1_000_000
                made.record(customer_id, amount, at=made.now() - hour * HOUR_US, key=f"key_{number}")
    replace(made.pusher(), plan_rows_max=rows_max).run(is_closing=True)
    units = {name: made.stripe_units(customer_id) for name, customer_id in customers_.items()}
    assert units == {"acme": 12, "debtor": 0, "slim": 3, "thin": 3, "zeta": 12}
    for customer_id in customers_.values():
        made.audit(customer_id)


def test_a_row_that_the_recorder_holds_is_left_to_the_next_round(postgres_server: PostgresServer) -> None:
    """The pusher does not wait behind a commit; SQLite has one writer, so the question is PostgreSQL's."""
    with bench(postgres_server.create_database()) as made:
        acme = made.add("acme").id
        made.record(acme, 1_000_000)
        with made.database.writing() as conn:
            conn.execute(sa.update(schema.usage_hourly).values(requests=9))
            assert made.push() == []
        assert len(made.push()) == 1


Ask = Callable[[sa.Connection, Instant, str], object]
QUERIES: dict[str, tuple[tuple[str, str], str, Ask]] = {
    "outbox.pending": (
        ("ix_usage_hourly_unassigned", "ix_usage_hourly_unassigned"),
        "usage_hourly",
        lambda conn, now, acme: outbox.pending(conn),
    ),
    "outbox.due": (
        ("ix_meter_batches_state", "ix_meter_batches_state"),
        "meter_batches",
        lambda conn, now, acme: outbox.due(conn, now, 10),
    ),
    "outbox.waiting": (
        ("ix_meter_batches_state", "ix_meter_batches_state"),
        "meter_batches",
        lambda conn, now, acme: outbox.tails(conn, [acme]),
    ),
    "outbox.tails": (
        ("sqlite_autoindex_meter_batches_2 (customer_id=?)", "Backward using uq_meter_batches_customer_id_seq"),
        "meter_batches",
        lambda conn, now, acme: outbox.tails(conn, [acme]),
    ),
    "inbox.has_due": (
        ("ix_stripe_events_state", "ix_stripe_events_state"),
        "stripe_events",
        lambda conn, now, acme: inbox.has_due(conn, now),
    ),
    "inbox.due": (
        ("ix_stripe_events_state", "ix_stripe_events_state"),
        "stripe_events",
        lambda conn, now, acme: inbox.due(conn, now, 10),
    ),
}


def test_a_hot_query_reads_an_index_and_not_years_of_rows(made: Bench) -> None:
    """EXPLAIN, with 20,000 settled rows of a customer's past in the tables."""
    acme = made.add("acme").id
    _fill_with_history(made.database, acme)
    for name in QUERIES:
        _reads_an_index(made, acme, name)


def _reads_an_index(made: Bench, acme: str, name: str) -> None:
    indexes, table, ask = QUERIES[name]
    plans: list[str] = []

    def explain(conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if f"weir:{name} " in statement and not is_many:
            prefix = "EXPLAIN QUERY PLAN " if made.database.is_sqlite else "EXPLAIN "
            rows = conn.connection.cursor().execute(prefix + statement, parameters).fetchall()
            plans.append("\n".join(str(row) for row in rows))

    with made.database.writing() as conn:
        sa.event.listen(conn, "before_cursor_execute", explain)
        ask(conn, Instant(made.now()), acme)
    assert len(plans) == 1
    assert indexes[not made.database.is_sqlite] in plans[0], plans[0]
    assert f"Seq Scan on {table}" not in plans[0], plans[0]
    assert f"SCAN {table}" not in plans[0], plans[0]


def _fill_with_history(database: Database, customer_id: str) -> None:
    rollup: dict[str, Any] = {column.name: 0 for column in schema.usage_hourly.columns if column.computed is None}
    rollup |= {"customer_id": customer_id, "api_key_id": "key_1", "model": "m", "amount_micro": 5, "assigned_micro": 5}
    batch: dict[str, Any] = {
        "customer_id": customer_id,
        "stripe_customer_id": "cus_1",
        "event_name": "e",
        "timestamp_s": 0,
        "units": 5,
        "carry_in_pico": 0,
        "carry_pico": 0,
        "covers": "[]",
        "state": "accepted",
        "attempts": 1,
        "created_at": 0,
        "next_attempt_at": 0,
    }
    event = {
        "type": "invoice.paid",
        "created_at": 0,
        "received_at": 0,
        "state": "done",
        "attempts": 1,
        "next_attempt_at": 0,
        "payload": "{}",
    }
    numbers = range(1, 20_001)
    with database.writing() as conn:
        conn.execute(sa.insert(schema.stripe_events), [event | {"id": f"evt_{number}"} for number in numbers])
        conn.execute(
            sa.insert(schema.usage_hourly), [rollup | {"window_start": number * HOUR_US} for number in numbers]
        )
        conn.execute(
            sa.insert(schema.meter_batches),
            [
                batch | {"id": f"b{number}", "idempotency_key": "k", "seq": number, "window_start": number * HOUR_US}
                for number in numbers
            ],
        )
        if not database.is_sqlite:  # Autovacuum does so; nobody does on SQLite.
            conn.execute(sa.text("ANALYZE"))
