"""`weir customer add --stripe` and `weir customer link`: a customer of ours and one of Stripe's become one payer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import clock
from billing.clock import SECOND_US
from billing.config import load
from billing.ledger import migrate
from billing.ledger.database import Database
from billing.stripe_sync import setup
from billing.stripe_sync.client import connect
from tests.acceptance.commands import DONE, FAILED, NOT_FOUND, REFUSED, Weir, at_stripe, runner
from tests.emulators.stripe_double import StripeDouble


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    """A Stripe of the test's own, at the clock's time; nothing may have broken its contract."""
    with StripeDouble(now=clock.now() // SECOND_US) as running:
        yield running
        assert running.violations == []


@pytest.fixture
def weir(
    double: StripeDouble,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Weir:
    """Run a command line where `weir stripe setup` was run."""
    at_stripe(monkeypatch, tmp_path, database_url, double)
    config = load(None)
    database = Database(database_url)
    migrate.upgrade(database)
    setup.run(config, database, connect(config), clock.now(), "test")
    database.close()
    return runner(capsys)


def test_a_customer_is_added_here_and_at_stripe(weir: Weir) -> None:
    """And is subscribed from the first moment on."""
    added = weir("customer", "add", "acme", "--email", "billing@acme.example", "--stripe", "--json").json
    assert added["stripe_customer"].startswith("cus_")
    assert added["stripe_subscription"].startswith("sub_")
    assert added["stripe_subscription_status"] == "active"
    assert added["period_start"] < added["period_end"]
    assert weir("customer", "show", "acme", "--json").json == added


def test_a_customer_of_stripes_is_adopted_by_one_customer_only(weir: Weir) -> None:
    """A second one is refused it, and exists all the same; the message says how to go on."""
    stripe_customer = weir("customer", "add", "acme", "--stripe", "--json").json["stripe_customer"]
    answer = weir("customer", "add", "ben", "--stripe-customer", stripe_customer)
    assert (answer.code, answer.out) == (FAILED, "")
    assert "'ben' was added, but not linked to Stripe" in answer.err
    assert "is linked to the customer 'acme'" in answer.err
    assert weir("customer", "show", "ben", "--json").json["stripe_customer"] is None
    assert weir("customer", "link", "ben").code == DONE
    assert weir("customer", "show", "ben", "--json").json["stripe_customer"] not in (None, stripe_customer)


def test_a_link_is_made_later_and_repeated_without_harm(weir: Weir) -> None:
    """A customer that was added without Stripe gets one there, once."""
    weir("customer", "add", "acme")
    first = weir("customer", "link", "acme", "--json").json
    assert first["stripe_customer"].startswith("cus_")
    assert weir("customer", "link", "acme", "--json").json == first
    assert weir("customer", "link", "acme", first["stripe_customer"], "--json").json == first


def test_a_link_is_replaced_only_with_yes(weir: Weir) -> None:
    """Because another one would pay for what is not sent yet."""
    acme = weir("customer", "add", "acme", "--stripe", "--json").json
    ben = weir("customer", "add", "ben", "--stripe", "--json").json
    answer = weir("customer", "link", "acme", ben["stripe_customer"])
    assert (answer.code, answer.out) == (REFUSED, "")
    assert weir("customer", "show", "acme", "--json").json == acme
    answer = weir("customer", "link", "acme", ben["stripe_customer"], "--yes")
    assert answer.code == FAILED
    assert f"'acme' is linked to nobody now: {ben['stripe_customer']} is linked to the customer 'ben'" in answer.err
    again = weir("customer", "link", "acme", acme["stripe_customer"], "--json").json
    assert again["stripe_subscription"] == acme["stripe_subscription"]


def test_who_is_unknown_at_stripe_can_not_pay(weir: Weir) -> None:
    """The customer stays unlinked."""
    weir("customer", "add", "acme")
    assert weir("customer", "link", "acme", "cus_unknown").code == NOT_FOUND
    assert weir("customer", "show", "acme", "--json").json["stripe_customer"] is None
