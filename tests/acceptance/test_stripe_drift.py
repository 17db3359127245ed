"""What somebody changed in the Dashboard is shown by `weir stripe setup --plan`, and mended by `weir stripe setup`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import clock
from billing.cli import app, stripe
from billing.clock import SECOND_US
from billing.ledger.inbox import State
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
