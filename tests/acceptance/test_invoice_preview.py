"""`weir invoice preview` and `weir trace`: the bill from both sides, and the way from it to the requests and back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing.cli import app, invoice
from billing.ledger import schema
from billing.stripe_sync import previews
from tests.acceptance.commands import NOT_FOUND, REFUSED, Weir, at_stripe, runner
from tests.stripe_bench import Bench, bench


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine."""
    with bench(database_url) as running:
        yield running


@pytest.fixture
def weir(made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line on the bench."""
    at_stripe(monkeypatch, tmp_path, made.config.database.url, made.double)
    if "invoice" not in app.root.commands:
        app.root.add_command(invoice.invoice)
    return runner(capsys)


def test_both_sides_agree_when_all_is_sent(made: Bench, weir: Weir) -> None:
    """What stays below a unit is carried, and the difference is exactly that."""
    acme = made.add("acme")
    made.record(acme.id, 12_345_678_900_123)
    made.push(is_closing=True)
    told = weir("invoice", "preview", "acme", "--json").json
    assert told["ledger"] == {
        "usage": "12.345678900123",
        "credit": "0.000000000000",
        "billable": "12.345678900123",
        "units_sent": 12_345_678,
        "units_unsent": 0,
    }
    assert told["stripe"] == {"units": 12_345_678, "amount": "12.345678000000", "total": "12.350000000000"}
    assert told["difference"] == told["explained"]["carry"] == "0.000000900123"
    assert told["unexplained"] == "0.000000000000"
    answer = weir("invoice", "preview", "acme")
    assert "to be invoiced" in answer.out
    assert "12.350000000000" in answer.out


def test_what_is_not_sent_explains_the_difference(made: Bench, weir: Weir) -> None:
    """Units that Stripe has not accepted, amounts in no batch, the carry: they add up to it."""
    acme = made.add("acme")
    made.record(acme.id, 1_000_000)
    made.push(is_closing=True)
    made.double.clock.advance(hours=1)
    made.record(acme.id, 5_500_000)
    made.double.fault("server_error", "/v1/billing/meter_events", times=None)
    made.push(is_closing=True)
    made.double.clear_faults()
    made.record(acme.id, 7_000_000)
    told = weir("invoice", "preview", "acme", "--json").json
    assert told["difference"] == "0.000012500000"
    assert told["explained"] == {
        "unsent": "0.000005000000",
        "unassigned": "0.000007000000",
        "carry": "0.000000500000",
    }
    assert told["unexplained"] == "0.000000000000"
    seen = previews.look(made.database, made.port, acme.id)
    assert seen.difference == seen.carry + seen.ledger.unassigned + 5_000_000


def test_what_stripe_counts_beyond_what_was_sent_is_not_explained_away(made: Bench, weir: Weir) -> None:
    acme = made.add("acme")
    made.record(acme.id, 3_000_000)
    made.push(is_closing=True)
    made.port.send(
        made.config.stripe.meter_event_name, str(acme.stripe_customer_id), 2, made.double.clock.now(), "x", "x"
    )
    assert weir("invoice", "preview", "acme", "--json").json["unexplained"] == "-0.000002000000"


def test_who_has_no_subscription_has_no_coming_invoice(made: Bench, weir: Weir) -> None:
    made.add("acme", is_linked=False)
    assert weir("invoice", "preview", "acme").code == REFUSED
    assert weir("invoice", "preview", "nobody").code == NOT_FOUND


def test_an_invoice_leads_to_its_batches_and_these_to_their_requests(made: Bench, weir: Weir) -> None:
    """Every request of the period once, and nobody else's; units and amounts add up on the way."""
    acme, ben = made.add("acme"), made.add("ben")
    sent = []
    for _ in range(3):
        sent += made.record_all(acme.id, [1_400_000, 2_300_000])
        made.record(ben.id, 9_000_000)
        made.push(is_closing=True)
        made.double.clock.advance(hours=1)
    made.double.end_period(str(acme.stripe_customer_id))
    made.record(acme.id, 8_000_000)
    made.push(is_closing=True)
    bill = next(
        each
        for each in made.double.objects("invoice")
        if each["customer"] == acme.stripe_customer_id and each["billing_reason"] == "subscription_cycle"
    )
    told = weir("trace", bill["id"], "--json").json
    (line,) = told["lines"]
    assert (told["customer"], line["units"], line["units_in_batches"]) == ("acme", 11, 11)
    traced = [weir("trace", each["meter_batch"], "--json").json for each in line["batches"]]
    assert sorted(row["id"] for batch in traced for row in batch["requests"]) == sorted(event.id for event in sent)
    assert {batch["customer"] for batch in traced} == {"acme"}
    assert [batch["units"] for batch in traced] == [3, 4, 4]
    with made.database.reading() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(schema.usage_events)) == 10


def test_what_stripe_or_the_ledger_does_not_know_is_not_found(made: Bench, weir: Weir) -> None:
    made.add("acme")
    assert weir("trace", "in_unknown").code == NOT_FOUND
    assert weir("trace", "nothing").code == NOT_FOUND
