"""Adjustments in the ledger: append-only, once, under concurrency, and back to whoever paid; on both engines."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from billing import clock, ids
from billing.clock import HOUR_US, Instant
from billing.credit.holds import Part
from billing.errors import NotFoundError, RefusedError
from billing.ledger import adjustments, charges, credit, events, leases, proof, schema, versions
from billing.ledger.adjustments import Adjusted, Choice, Order, Prices
from billing.ledger.charges import Charge
from billing.money import Pico
from billing.pricing.correction import Add, Change, Recount, Refund
from billing.usage import Usage, UsageEvent
from tests.credit_bench import NOON, USD, CreditBench, credit_bench
from tests.tables import book
from tests.unit.ledger.made import event

BOOK = """
    cost    qwen3.5-9b  input 0.0300  output 0.1200    from 2026-01-01
    margin  global      30%                            from 2026-01-01
    margin  global      10%                            from 2027-01-01
"""
LATER = Instant(NOON + 3 * HOUR_US + 7)
ORDER = Order("run", "refund", "our mistake", "cli:anna", LATER, USD)


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine; at its end every audit of the ledger must hold."""
    with credit_bench(database_url) as made:
        yield made
        with made.database.reading() as conn:
            assert list(proof.run(conn)) == []


def recorded(bench: CreditBench, *, is_prepaid: bool = False, **given: Any) -> UsageEvent:
    """One request at noon, priced by BOOK, of a customer of its own."""
    prices = book(BOOK)
    quote = prices.quote("qwen3.5-9b", None, NOON)
    assert quote is not None
    usage = Usage(1_000, 500, 600, 200)
    customer_id = given.pop("customer_id", None) or bench.customer(ids.new_id("name"), is_prepaid=is_prepaid)
    made = event(
        NOON,
        customer_id=customer_id,
        price_ref=quote.ref,
        cost_pico=quote.cost.charge(usage),
        amount_pico=quote.price.charge(usage),
        **given,
    )
    with bench.database.writing() as conn:
        versions.store_quote(conn, quote)
        if not is_prepaid:
            events.append(conn, [made], 0)
    return made


def adjust(bench: CreditBench, made: UsageEvent, change: Change | Prices, run_key: str = "run") -> Adjusted:
    """Correct one event."""
    with bench.database.writing() as conn:
        (found,) = adjustments.adjust(conn, [made.id], replace(ORDER, run_key=run_key, change=str(change)), change)
    return found


def rows(bench: CreditBench, table: sa.Table) -> list[dict[str, Any]]:
    """All rows of a table."""
    with bench.database.reading() as conn:
        query = sa.select(table).order_by(*table.primary_key.columns)
        return [dict(row) for row in conn.execute(query).mappings()]


def net(bench: CreditBench) -> int:
    """What the rollups come to, which must be what the events do."""
    of_rollups: int = sum(row["amount_micro"] * 10**6 + row["amount_pico"] for row in rows(bench, schema.usage_hourly))
    assert of_rollups == sum(row["amount_pico"] for row in rows(bench, schema.usage_events))
    return of_rollups


def test_a_refund_is_an_event_of_its_own_in_the_present_hour(bench: CreditBench) -> None:
    """The original stays as it was; requests are still one."""
    made = recorded(bench)
    before = rows(bench, schema.usage_events)
    found = adjust(bench, made, Refund())
    after = {row["id"]: row for row in rows(bench, schema.usage_events)}
    assert found.is_new
    assert found.adjustment is not None
    assert after[made.id] == before[0]
    new = after[found.adjustment.id]
    assert (new["outcome"], new["adjusts"], new["amount_pico"]) == ("adjustment", made.id, -made.amount_pico)
    assert (new["input_tokens"], new["output_tokens"], new["cost_pico"]) == (0, 0, 0)
    assert (new["window_start"], new["api_key_id"], new["model"]) == (NOON + 3 * HOUR_US, "key_app", made.model)
    assert net(bench) == 0
    assert sum(row["requests"] for row in rows(bench, schema.usage_hourly)) == 1


def test_a_period_boundary_inside_the_hour_divides_corrections_too(bench: CreditBench) -> None:
    made = recorded(bench)
    table = schema.customers
    with bench.database.writing() as conn:
        conn.execute(sa.update(table).values(period_start=LATER - 5, period_end=LATER + HOUR_US))
    found = adjust(bench, made, Refund())
    assert found.adjustment is not None
    assert found.adjustment.window_start == LATER - 5


def test_a_second_full_refund_changes_nothing(bench: CreditBench) -> None:
    made = recorded(bench)
    adjust(bench, made, Refund())
    again = adjust(bench, made, Refund(), run_key="another")
    assert (again.adjustment, again.because) == (None, "there is nothing to change")
    assert net(bench) == 0


def test_the_same_key_corrects_once_and_another_change_under_it_is_refused(bench: CreditBench) -> None:
    made = recorded(bench)
    first = adjust(bench, made, Add(Pico(-5)))
    again = adjust(bench, made, Add(Pico(-5)))
    assert first.adjustment is not None
    assert again.adjustment is not None
    assert (again.adjustment.id, again.is_new) == (first.adjustment.id, False)
    assert net(bench) == made.amount_pico - 5
    with pytest.raises(RefusedError, match="was used for another change"):
        adjust(bench, made, Add(Pico(-6)))
    adjust(bench, made, Add(Pico(-5)), run_key="on purpose")
    assert net(bench) == made.amount_pico - 10


def test_new_prices_are_those_of_the_other_instant_and_the_quote_is_kept(bench: CreditBench) -> None:
    """By hand: 10 % instead of 30 % on a cost of 0.00009."""
    made = recorded(bench)
    found = adjust(bench, made, Prices(book(BOOK), Instant(NOON + 366 * 24 * HOUR_US)))
    assert found.adjustment is not None
    assert (made.amount_pico, found.adjustment.amount_pico) == (117_000_000, -18_000_000)
    with bench.database.reading() as conn:
        assert versions.load_quote(conn, found.adjustment.price_ref).margin == "10%"
    own = adjust(bench, made, Prices(book(BOOK), None), run_key="back")
    assert own.adjustment is not None
    assert own.adjustment.amount_pico == 18_000_000


def test_a_model_without_a_price_at_the_instant_is_told(bench: CreditBench) -> None:
    found = adjust(bench, recorded(bench), Prices(book(BOOK), Instant(0)))
    assert (found.adjustment, found.because) == (None, "qwen3.5-9b has no price at 1970-01-01T00:00:00Z")


def test_tokens_are_corrected_with_their_money(bench: CreditBench) -> None:
    """100 output tokens fewer at 0.156 per 1M."""
    found = adjust(bench, recorded(bench), Recount(output_tokens=400))
    assert found.adjustment is not None
    assert (found.adjustment.output_tokens, found.adjustment.amount_pico) == (-100, -15_600_000)
    assert sum(row["output_tokens"] for row in rows(bench, schema.usage_hourly)) == 400


def test_corrections_of_corrections_and_of_nothing_are_refused(bench: CreditBench) -> None:
    made = recorded(bench)
    found = adjust(bench, made, Add(Pico(1)))
    assert found.adjustment is not None
    with pytest.raises(RefusedError, match=f"correct {made.id}"):
        adjust(bench, found.adjustment, Refund())
    with pytest.raises(NotFoundError, match="no usage is recorded"):
        adjust(bench, made._replace(id="nothing"), Refund())


def test_a_preview_leaves_no_trace(bench: CreditBench) -> None:
    made = recorded(bench)
    with bench.database.writing() as conn:
        (found,) = adjustments.preview(conn, [made.id], ORDER, Refund())
    assert found.adjustment is not None
    assert found.adjustment.amount_pico == -made.amount_pico
    assert net(bench) == made.amount_pico
    assert rows(bench, schema.adjustments) == []


def test_the_log_and_the_notes_say_who_why_and_how_much(bench: CreditBench) -> None:
    made = recorded(bench)
    found = adjust(bench, made, Refund())
    assert found.adjustment is not None
    (line,) = [row for row in rows(bench, schema.audit_log) if row["action"] == "usage.adjust"]
    assert (line["actor"], line["subject"]) == ("cli:anna", made.customer_id)
    assert '"amount": "-0.000117"' in line["details"]
    assert '"reason": "our mistake"' in line["details"]
    with bench.database.reading() as conn:
        (note,) = adjustments.of_request(conn, made.id)
        assert adjustments.note_of(conn, found.adjustment.id) == "our mistake"
    assert (note.event_id, note.change, note.amount) == (found.adjustment.id, "refund", -made.amount_pico)


def test_two_refunds_at_once_give_back_once(bench: CreditBench) -> None:
    """The second waits for the first one's commit, and finds nothing left."""
    made = recorded(bench)
    found: list[Adjusted] = []
    second = threading.Thread(target=lambda: found.append(adjust(bench, made, Refund(), run_key="second")))
    with bench.database.writing() as conn:
        found += adjustments.adjust(conn, [made.id], ORDER, Refund())
        second.start()
        wait_until_it_waits(bench)
    second.join(30)
    assert [each.because for each in found] == [None, "there is nothing to change"]
    assert net(bench) == 0


def wait_until_it_waits(bench: CreditBench) -> None:
    """On PostgreSQL, until a transaction waits for another's lock; SQLite lets nobody else begin."""
    deadline = time.monotonic() + 20
    query = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while not bench.database.is_sqlite:
        with bench.database.reading() as conn:
            if conn.scalar(query):
                return
        assert time.monotonic() < deadline, "nobody waits"


def test_events_are_chosen_by_time_customer_and_model_in_pages(bench: CreditBench) -> None:
    """A boundary instant belongs to the time after; adjustments are never chosen."""
    mine = bench.customer()
    instants = [NOON, NOON + 1, NOON + HOUR_US]
    made = [recorded(bench, customer_id=mine, started_at=at, id=_id(at)) for at in instants]
    recorded(bench, started_at=NOON, id=_id(NOON + 2_000))
    adjust(bench, made[0], Add(Pico(-1)))

    def chosen(choice: Choice, **paging: Any) -> Sequence[str]:
        with bench.database.reading() as conn:
            return adjustments.chosen(conn, choice, **paging)

    of_mine = {"customer_id": mine}
    assert chosen(Choice(equal=of_mine)) == [each.id for each in made]
    assert chosen(Choice(equal=of_mine), rows_max=2) == [each.id for each in made[:2]]
    assert chosen(Choice(equal=of_mine), after=made[1].id) == [made[2].id]
    inside = Choice(Instant(NOON + 1), Instant(NOON + HOUR_US), of_mine)
    assert chosen(inside) == [made[1].id]
    assert len(chosen(Choice())) == 4
    assert chosen(Choice(equal={"model": "another"})) == []


def _id(instant: int) -> str:
    """An id of an instant, as a request of then has one."""
    digits = f"{instant // 1_000:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-{clock.now():012x}"[:36]


# prepaid credit


def prepaid(bench: CreditBench, credit_pico: int) -> UsageEvent:
    """A prepaid request, paid from a lease as far as that goes."""
    made = recorded(bench, is_prepaid=True, finished_at=NOON)
    bench.grant(made.customer_id, credit_pico)
    lease = bench.take(made.customer_id, min(credit_pico, made.amount_pico)).additions
    parts = tuple((each.lease_id, each.amount) for each in lease)
    bench.record(Charge(made, tuple(Part(lease_id, Pico(amount)) for lease_id, amount in parts)))
    return made


def test_what_credit_paid_becomes_credit_again(bench: CreditBench) -> None:
    """And is never Stripe's business."""
    made = prepaid(bench, 200_000_000)
    adjust(bench, made, Refund())
    balance = bench.standing(made.customer_id)
    assert balance[2] == 200_000_000
    assert all(row["is_unassigned"] == 0 for row in rows(bench, schema.usage_hourly))
    assert [row["credit_pico"] for row in rows(bench, schema.adjustments)] == [-117_000_000]
    again = adjust(bench, made, Refund(), run_key="again")
    assert again.adjustment is None
    bench.audit(made.customer_id)


def test_only_what_credit_paid_becomes_credit_again(bench: CreditBench) -> None:
    """17,000,000 of the request were written off: there is nothing of that to give back."""
    made = prepaid(bench, 100_000_000)
    assert [row["change"] for row in rows(bench, schema.adjustments)] == ["uncovered"]
    found = adjust(bench, made, Refund())
    assert found.adjustment is not None
    assert found.adjustment.amount_pico == -100_000_000
    assert bench.standing(made.customer_id)[2] == 100_000_000
    assert net(bench) == 0
    bench.audit(made.customer_id)


def test_more_is_charged_to_a_prepaid_customer_only_if_credit_covers_it(bench: CreditBench) -> None:
    """Nothing is written if it does not; what was burnt so can be given back, too."""
    made = prepaid(bench, 120_000_000)
    adjust(bench, made, Add(Pico(3_000_000)))
    assert bench.standing(made.customer_id)[2] == 0
    with pytest.raises(RefusedError, match=r"0 usd of credit left, less than the 0\.000000000001"):
        adjust(bench, made, Add(Pico(1)), run_key="more")
    bench.audit(made.customer_id)
    adjust(bench, made, Refund(), run_key="all")
    assert bench.standing(made.customer_id)[2] == 120_000_000
    bench.audit(made.customer_id)


def test_of_what_credit_and_stripe_paid_stripes_part_is_given_back_first(bench: CreditBench) -> None:
    """A postpaid request of which credit paid 100,000,000: 20,000,000 back are 17 of Stripe's and 3 of credit's."""
    made = recorded(bench, is_prepaid=True)
    bench.grant(made.customer_id, 100_000_000)
    with bench.database.writing() as conn:
        conn.execute(sa.update(schema.customers).values(is_prepaid=0))
        events.append(conn, [made], 0, {made.id: 100_000_000})
        _, parts = leases.burn(conn, credit.lock(conn, made.customer_id), 100_000_000, NOON)
        charges.name(conn, [(made, part) for part in parts])
    adjust(bench, made, Add(Pico(-20_000_000)))
    assert bench.standing(made.customer_id)[2] == 3_000_000
    unassigned = sum(
        (row["amount_micro"] - row["assigned_micro"]) * 10**6 + row["amount_pico"] - row["assigned_pico"]
        for row in rows(bench, schema.usage_hourly)
    )
    assert unassigned == 0
