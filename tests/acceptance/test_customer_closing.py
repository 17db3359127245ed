"""`weir customer delete`: the last usage is invoiced before the subscription ends; and webhooks replayed in bulk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.cli import app, stripe
from billing.ledger import accounts, inbox
from billing.ledger.inbox import State
from billing.stripe_sync import closing
from tests.acceptance.commands import DONE, REFUSED, USAGE, Weir, at_stripe, runner
from tests.stripe_bench import Bench, bench
from tests.stripe_hooks import Hooked, body, sign


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, on the machine's clock."""
    with bench(database_url, now=None) as running:
        yield running


@pytest.fixture
def weir(made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line on the bench."""
    at_stripe(monkeypatch, tmp_path, made.config.database.url, made.double)
    if "stripe" not in app.root.commands:
        app.root.add_command(stripe.stripe)
    return runner(capsys)


def test_the_last_usage_is_on_the_last_invoice(made: Bench, weir: Weir) -> None:
    """Also that of the running hour; the keys are gone, and the account says so."""
    acme = made.add("acme")
    assert weir("key", "create", "acme").code == DONE
    made.record(acme.id, 12_000_000_000_000)
    closed = weir("customer", "delete", "acme", "--yes", "--json").json
    assert closed["status"] == "deleted"
    assert all(each["revoked_at"] for each in weir("key", "list", "--json").json)
    assert made.double.subscription_of(str(acme.stripe_customer_id))["status"] == "canceled"
    bills = [each for each in made.double.objects("invoice") if each["customer"] == acme.stripe_customer_id]
    assert sum(line["quantity"] or 0 for bill in bills for line in bill["lines"]["data"]) == 12_000_000
    assert weir("customer", "delete", "acme", "--yes").code == DONE
    made.audit(acme.id)


def test_nothing_is_cancelled_while_usage_is_not_sent(made: Bench, weir: Weir) -> None:
    """The keys are revoked all the same, and the next attempt goes on."""
    acme = made.add("acme")
    made.record(acme.id, 3_000_000)
    made.double.fault("server_error", "/v1/billing/meter_events", times=None)
    answer = weir("customer", "delete", "acme", "--yes")
    assert answer.code == REFUSED
    assert "3 units of 'acme' are not accepted by Stripe" in answer.err
    assert made.double.subscription_of(str(acme.stripe_customer_id))["status"] == "active"
    made.double.clear_faults()
    with made.database.writing() as conn:
        assert accounts.get_customer(conn, acme.id).deleted_at is None
    assert weir("stripe", "push", "--now").code == DONE
    assert weir("customer", "delete", "acme", "--yes").code == DONE
    assert made.stripe_units(acme.id) == 3


def test_a_customer_without_stripe_is_closed_without_it(made: Bench, weir: Weir) -> None:
    made.add("acme", is_linked=False)
    assert weir("customer", "delete", "acme", "--yes", "--json").json["status"] == "deleted"
    assert weir("customer", "list", "--json").json[0]["suspensions"][0]["reason"] == closing.CLOSED_REASON


def test_events_are_replayed_by_id_or_by_time_and_failures_are_told(made: Bench, weir: Weir) -> None:
    hooked = Hooked(made)
    try:
        for number in range(3):
            raw = body(id=f"evt_{number}")
            hooked.receive(raw, sign(raw, hooked))
    finally:
        hooked.close()
    with made.database.writing() as conn:
        inbox.settle(conn, ["evt_0", "evt_1", "evt_2"], State.FAILED, "no answer", made.now())
    answer = weir("stripe", "status")
    assert "3 events of Stripe's had no effect" in answer.err
    assert weir("stripe", "status", "--json").json["events"] == {"failed": 3}
    assert weir("stripe", "replay").code == weir("stripe", "replay", "evt_0", "--since", "-1d").code == USAGE
    assert weir("stripe", "replay", "evt_0").code == DONE
    assert weir("stripe", "status", "--json").json["events"] == {"failed": 2, "pending": 1}
    assert weir("stripe", "replay", "--since", "2020-01-01").out == "3 events will be processed again\n"
    assert weir("stripe", "status", "--json").json["events"] == {"pending": 3}
