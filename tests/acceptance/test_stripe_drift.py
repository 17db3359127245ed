"""What somebody changed in the Dashboard is shown by `weir stripe setup --plan`, and mended by `weir stripe setup`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import clock
from billing.cli import app, stripe
from billing.clock import SECOND_US
from billing.ledger import accounts
from billing.ledger.inbox import State
from billing.stripe_sync import reconcile, refresh
from tests.acceptance.commands import DONE, FAILED, Weir, at_stripe, runner
from tests.emulators.stripe_double import StripeDouble
from tests.stripe_bench import Bench, bench
from tests.stripe_hooks import Hooked, body, sign


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine."""
    with bench(database_url) as running:
        yield running


@pytest.fixture
def weir(made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line on the bench, where setup was run."""
    at_stripe(monkeypatch, tmp_path, made.config.database.url, made.double)
    if "stripe" not in app.root.commands:
        app.root.add_command(stripe.stripe)
    return runner(capsys)


def planned(weir: Weir) -> dict[str, tuple[str, str | None]]:
    """Action and drift by kind."""
    rows = weir("stripe", "setup", "--plan", "--json").json
    return {row["kind"]: (row["action"], row["drift"]) for row in rows}


def switch_off(double: StripeDouble, made: Bench) -> tuple[str, str, str]:
    """Somebody deactivates the meter and archives price and product."""
    api = made.port._v1
    ids = tuple(str(double.objects(kind)[0]["id"]) for kind in ("billing.meter", "product", "price"))
    api.prices.update(ids[2], {"active": False})
    api.products.update(ids[1], {"active": False})
    api.billing.meters.deactivate(ids[0])
    return ids[0], ids[1], ids[2]


def test_what_was_switched_off_is_told_and_nothing_is_changed_by_a_plan(made: Bench, weir: Weir) -> None:
    assert planned(weir) == dict.fromkeys(("meter", "product", "price"), ("adopt", None))
    meter, product, price = switch_off(made.double, made)
    before = made.double.events
    wanted = {
        "meter": ("reactivate", f"{meter} was switched off at Stripe"),
        "product": ("reactivate", f"{product} was switched off at Stripe"),
        "price": ("reactivate", f"{price} was switched off at Stripe"),
    }
    assert planned(weir) == planned(weir) == wanted
    assert made.double.events == before
    assert weir("stripe", "setup").code == DONE
    assert planned(weir) == dict.fromkeys(("meter", "product", "price"), ("adopt", None))


def test_a_price_that_lost_its_name_is_told(made: Bench, weir: Weir) -> None:
    """Another one would be made, and subscriptions would stay on the old one."""
    price = made.double.objects("price")[0]["id"]
    made.port._v1.prices.update(price, {"lookup_key": ""})
    assert planned(weir)["price"] == ("create", f"{price} is gone, or no longer found by its name")


def test_a_price_that_can_not_be_used_says_what_to_do(made: Bench, weir: Weir) -> None:
    """Exit 1: nothing can be planned."""
    api = made.port._v1
    price = made.double.objects("price")[0]
    other = api.prices.create(
        {
            "currency": "usd",
            "product": price["product"],
            "recurring": {"interval": "year", "usage_type": "metered", "meter": price["recurring"]["meter"]},
            "unit_amount": 5,
            "lookup_key": price["lookup_key"],
            "transfer_lookup_key": True,
        }
    )
    answer = weir("stripe", "setup", "--plan")
    assert answer.code == FAILED
    assert other.id in answer.err
    assert "take the lookup key away" in answer.err


@pytest.mark.parametrize("kind", ["invoice", "customer.subscription", "customer"])
def test_thin_twins_of_v1_events_have_the_same_effect(made: Bench, kind: str) -> None:
    """They name their object only; whose it is, and what is true, is fetched."""
    acme = made.add("acme")
    hooked = Hooked(made)
    try:
        made.double.hold_events()
        invoice = made.double.fail_invoice(str(acme.stripe_customer_id))
        ids = {
            "invoice": (invoice["id"], "v1.invoice.payment_failed"),
            "customer.subscription": (acme.stripe_subscription_id, "v1.customer.subscription.updated"),
            "customer": (acme.stripe_customer_id, "v1.customer.deleted"),
        }
        named, event_type = ids[kind]
        related = {"id": named, "type": kind, "url": "/v1/x"}
        made_at = clock.instant_text(made.now())
        thin = {"object": "v2.core.event", "type": event_type, "related_object": related, "created": made_at}
        raw = body(id="evt_thin", data=None, **thin)
        hooked.receive(raw, sign(raw, hooked))
        hooked.work()
        assert [event.last_error for event in hooked.events(State.DONE)] == [None]
        assert made.account(acme.id).past_due_since == made.now()
        assert made.now() % SECOND_US == 0
    finally:
        hooked.close()


def test_the_status_names_what_was_changed_at_stripe_and_goes_on_without_stripe(made: Bench, weir: Weir) -> None:
    """Each object with what follows and what mends it; offline, and while Stripe is away, the rest is shown."""
    assert weir("stripe", "status", "--json").json["drift"] == []
    ids = switch_off(made.double, made)
    found = weir("stripe", "status", "--json").json["drift"]
    assert {(row["kind"], row["stripe_id"]) for row in found} == set(
        zip(("meter", "product", "price"), ids, strict=True)
    )
    assert all("weir stripe setup" in row["remedy"] for row in found)
    assert "switched off at Stripe" in weir("stripe", "status").out
    made.double.fault("server_error", "/v1/billing/meters", times=None)
    answer = weir("stripe", "status", "--json").json
    assert (answer["drift"], "500" in answer["drift_unknown"]) == ([], True)
    assert weir("stripe", "status", "--offline", "--json").json["drift_unknown"] is None
    made.double.clear_faults()
    assert weir("stripe", "setup").code == DONE
    assert weir("stripe", "status", "--json").json["drift"] == []


def test_everybody_is_compared_however_few_are_read_at_a_time(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a customer that was unlinked since, at its old link; and nobody twice."""
    monkeypatch.setattr(reconcile, "CHUNK_SUBJECTS", 2)
    everybody = [made.add(f"c{number}", is_linked=number != 2) for number in range(6)]
    for customer in everybody:
        made.record(customer.id, 3_000_000)
    made.push(is_closing=True)
    with made.database.writing() as conn:
        accounts.unlink(conn, everybody[3].id, made.now(), "test")
    made.double.clock.advance(hours=2)
    report = made.reconcile()
    assert (report.subjects, report.kinds, report.is_explained) == (5, {"match": 5}, True)
    assert len({each.subject.stripe_customer_id for each in report.found}) == 5
    assert made.reconcile().kinds == {"match": 5}


def test_a_subscription_that_bills_our_meter_no_longer_is_told(made: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody takes the item away, or puts another price in its place: usage would be counted and never invoiced."""
    acme = made.add("acme")
    item = made.double.objects("subscription")[0]["items"]["data"][0]
    refresh.refresh(made.config, made.database, made.port, acme.id, made.now())
    assert not [each for each in caplog.records if each.message == "stripe.subscription.drift"]
    item["price"] = item["price"] | {"id": "price_other"}
    refresh.refresh(made.config, made.database, made.port, acme.id, made.now())
    item["price"] = item["price"] | {"recurring": item["price"]["recurring"] | {"meter": None}}
    refresh.refresh(made.config, made.database, made.port, acme.id, made.now())
    told = [each.__dict__["fault"] for each in caplog.records if each.message == "stripe.subscription.drift"]
    assert ["price_other" in told[0], "has no item for our meter" in told[1]] == [True, True]
