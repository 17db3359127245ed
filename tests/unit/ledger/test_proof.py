"""`weir audit ledger` finds each kind of row that is not what it should be, names it, and finds nothing else."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from billing.clock import HOUR_US, Instant
from billing.credit.holds import Part
from billing.ledger import due as dues
from billing.ledger import inflight, outbox, proof, schema
from billing.ledger.charges import Payment
from billing.ledger.due import Due
from billing.ledger.proof import Finding
from billing.money import Pico
from billing.stripe_sync import batches
from tests.credit_bench import NOON, CreditBench, credit_bench
from tests.unit.ledger.made import event, quote

QUOTE = quote()
LATER = Instant(NOON + 2 * HOUR_US)


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A ledger in which everything has happened: batches, credit, a write-off, a correction, a checkpoint."""
    with credit_bench(database_url) as made:
        fill(made)
        yield made


def fill(bench: CreditBench) -> None:
    prepaid = bench.customer()
    bench.grant(prepaid, 500_000_000)
    lease, open_lease = bench.lease(prepaid, 117_000_000), bench.lease(prepaid, 200_000_000, "b")
    with bench.database.writing() as conn:
        table = schema.customers
        conn.execute(
            sa.insert(table), [{"id": "cust_b", "name": "b", "created_at": NOON, "stripe_customer_id": "cus_b"}]
        )
        inflight.register(conn, "worker_1", "host:1", NOON)
        dues.store_quotes(conn, [QUOTE])
        charged = {"customer_id": prepaid, "price_ref": QUOTE.ref, "amount_pico": 117_000_000}
        for lease_id in (lease, open_lease):
            part = Part(lease_id, Pico(117_000_000))
            dues.append(conn, [Due(event(NOON, **charged), QUOTE, Payment((part,)))], 1, NOON)
        metered = [event(NOON, customer_id="cust_b", price_ref=QUOTE.ref) for _ in range(3)]
        cut = inflight.interrupted(event(NOON, customer_id="cust_b", price_ref=QUOTE.ref, output_tokens=450))
        cut = cut._replace(cost_pico=84_000_000, amount_pico=117_000_000 - 50 * 156_000)
        dues.append(conn, [Due(each, QUOTE) for each in (*metered, cut)], 1, NOON)
        whole = event(NOON, id=cut.id, customer_id="cust_b", price_ref=QUOTE.ref)
        dues.append(conn, inflight.resolved(conn, [Due(whole, QUOTE)]), 2, NOON)
        inflight.write(conn, "worker_1", [Due(inflight.interrupted(event(NOON, price_ref=QUOTE.ref)), QUOTE)])
    bench.close(prepaid, lease)
    for hour in (0, 1):
        with bench.database.writing() as conn:
            if hour:
                late = event(Instant(NOON + HOUR_US), customer_id="cust_b", price_ref=QUOTE.ref)
                dues.append(conn, [Due(late, QUOTE)], 1, LATER)
            deltas, _ = outbox.pending(conn)
            plan = batches.plan(deltas, outbox.tails(conn, ["cust_b"]), LATER, "meter", is_closing=True)
            outbox.append(conn, plan)


def found(bench: CreditBench) -> list[Finding]:
    with bench.database.reading() as conn:
        return list(proof.run(conn))


def test_a_ledger_in_which_everything_happened_is_proven(bench: CreditBench) -> None:
    assert found(bench) == []
    with bench.database.reading() as conn:
        by_customer = {each.customer_id: each for each in proof.totals(conn)}
        counts = [conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in TABLES]
    assert all(counts), "each kind of row is there"
    metered = by_customer["cust_b"]
    assert metered.events == metered.rollups == 5 * 117_000_000
    assert metered.units * 10**6 + metered.carry == metered.events
    (prepaid,) = (each for each in by_customer.values() if each is not metered)
    assert (prepaid.events, prepaid.credit, prepaid.units) == (2 * 117_000_000, 2 * 117_000_000, 0)


TABLES = (
    *(schema.usage_events, schema.usage_hourly, schema.meter_batches, schema.credit_entries, schema.leases),
    *(schema.credit_charges, schema.price_quotes, schema.inflight, schema.adjustments),
)

ONE_ROLLUP = "customer_id = 'cust_b' AND shard % 64 = 2"
FIRST_BATCH = "seq = 1"
CORRUPTIONS = {
    "a token more in an event": ("UPDATE usage_events SET output_tokens = output_tokens + 1 WHERE id = {event}", 2),
    "a picounit more in an event": ("UPDATE usage_events SET amount_pico = amount_pico + 1 WHERE id = {event}", 2),
    "a picounit of cost more": ("UPDATE usage_events SET cost_pico = cost_pico + 1 WHERE id = {event}", 2),
    "an event that is gone": ("DELETE FROM usage_events WHERE id = {event}", 1),
    "an event of another customer": ("UPDATE usage_events SET customer_id = 'cust_x' WHERE id = {event}", 2),
    "a quote that is not there": ("UPDATE usage_events SET price_ref = 'none' WHERE id = {event}", 1),
    "another price": ("UPDATE price_quotes SET output_pico = output_pico + 1", 7),
    "a rollup that is gone": (f"DELETE FROM usage_hourly WHERE {ONE_ROLLUP}", 2),
    "a request more in a rollup": (
        f"UPDATE usage_hourly SET requests = requests + 1 WHERE {ONE_ROLLUP}",
        1,
    ),
    "a unit assigned more": (f"UPDATE usage_hourly SET assigned_micro = assigned_micro + 1 WHERE {ONE_ROLLUP}", 1),
    "credit for what none paid": (f"UPDATE usage_hourly SET credit_pico = 3 WHERE {ONE_ROLLUP}", 2),
    "a unit more in a batch": (f"UPDATE meter_batches SET units = units + 1 WHERE {FIRST_BATCH}", 1),
    "a carry that nobody took over": (f"UPDATE meter_batches SET carry_pico = carry_pico + 1 WHERE {FIRST_BATCH}", 1),
    "a batch that is gone": (f"DELETE FROM meter_batches WHERE {FIRST_BATCH}", 2),
    "a correction of nothing": ("UPDATE usage_events SET adjusts = 'none' WHERE outcome = 'adjustment'", 1),
    "a correction without its note": ("DELETE FROM adjustments", 1),
    "a credit entry changed": ("UPDATE credit_entries SET amount_micro = amount_micro + 1 WHERE kind = 'grant'", 2),
    "a credit entry's number": ("UPDATE credit_entries SET seq = 9 WHERE kind = 'burn'", 1),
    "a lease used more": ("UPDATE leases SET used_pico = used_pico - 1 WHERE closed_at IS NULL", 1),
    "a closed lease used less": ("UPDATE leases SET used_pico = used_pico - 1 WHERE closed_at IS NOT NULL", 2),
    "a charge more": ("UPDATE credit_charges SET amount_pico = amount_pico + 1 WHERE event_id = {charged}", 2),
    "a checkpoint that says less": ("UPDATE inflight SET amount_pico = amount_pico - 1", 1),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_row_that_was_tampered_with_is_found(bench: CreditBench, name: str) -> None:
    statement, count = CORRUPTIONS[name]
    with bench.database.reading() as conn:
        events = schema.usage_events
        of_b = sa.select(events.c.id).where(events.c.customer_id == "cust_b", events.c.outcome == "completed")
        names = {
            "event": conn.execute(of_b.order_by(events.c.id).limit(1)).scalar_one(),
            "charged": conn.execute(sa.select(sa.func.max(schema.credit_charges.c.event_id))).scalar_one(),
        }
    with bench.database.writing() as conn:
        conn.execute(sa.text(statement.format(**{key: f"'{value}'" for key, value in names.items()})))
    findings = found(bench)
    assert len(findings) == count, findings
    if "{event}" in statement and not name.endswith("gone"):
        assert any(finding.row == names["event"] for finding in findings) or "another customer" in name
