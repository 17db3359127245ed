"""The Stripe double as a biller: prices, periods, invoices, changes and endings of subscriptions.

Amounts are worked out by hand; dates are those of a calendar.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.contract.stripe_double_support import DAY_S, HOUR_S, NOW, World, receiving, types_since, world


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


def unix(text: str) -> int:
    """Seconds of an RFC 3339 instant."""
    return int(datetime.fromisoformat(text).timestamp())


def day(instant: int) -> str:
    """The UTC date of an instant."""
    return datetime.fromtimestamp(instant, UTC).date().isoformat()


def period(subscription: Any) -> tuple[int, int]:
    """A subscription's running period, which since basil stands on its items."""
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


# -- prices ---


def test_a_fractional_price_has_no_whole_amount(w: World) -> None:
    price = w.client.v1.prices.retrieve(w.price)
    assert (price.unit_amount, price.unit_amount_decimal) == (None, Decimal("0.0001"))
    assert price.recurring is not None
    assert (price.recurring.usage_type, price.recurring.meter) == (
        "metered",
        w.meter,
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"recurring": {"interval": "month", "usage_type": "metered"}}, "recurring[meter]"),
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": Decimal("0.0000001")}, "unit_amount_decimal"),
        (
            {"recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_no"}},
            "recurring[meter]",
        ),
    ],
)
def test_prices_that_stripe_refuses(w: World, change: dict[str, Any], param: str) -> None:
    recurring = {"interval": "month", "usage_type": "metered", "meter": w.meter}
    asked: Any = {"currency": "usd", "product": w.product, "recurring": recurring, "unit_amount_decimal": "1"}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v1.prices.create(asked | change)
    assert refused.value.param == param


def test_a_lookup_key_finds_its_price_and_is_unique_until_transferred(w: World) -> None:
    asked: Any = {"currency": "usd", "product": w.product, "unit_amount": 100, "lookup_key": "tokens_in"}
    first = w.client.v1.prices.create(asked)
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.prices.create(asked)
    second = w.client.v1.prices.create(asked | {"transfer_lookup_key": True})
    assert [each.id for each in w.client.v1.prices.list({"lookup_keys": ["tokens_in"]}).data] == [second.id]
    assert w.client.v1.prices.retrieve(first.id).lookup_key is None


def test_setup_twice_finds_its_product_by_id(w: World) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v1.products.create({"name": "again", "id": w.product})
    assert refused.value.code == "resource_already_exists"
    metered = w.client.v1.prices.list({"recurring": {"meter": w.meter}})
    assert [each.id for each in metered.data] == [w.price]


# -- periods ---


def test_a_subscription_of_the_31st_ends_its_months_on_their_last_day() -> None:
    with world(now=unix("2026-01-31T10:30:00+00:00")) as w:
        subscription = w.subscribe()
        ends = [day(period(subscription)[1])]
        for _ in range(3):
            w.double.clock.move_to(period(w.client.v1.subscriptions.retrieve(subscription.id))[1])
            ends.append(day(period(w.client.v1.subscriptions.retrieve(subscription.id))[1]))
        assert ends == ["2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]


def test_an_anchor_in_the_future_makes_a_short_first_period(w: World) -> None:
    anchor = unix("2026-03-15T00:00:00+00:00")
    assert period(w.subscribe(billing_cycle_anchor=anchor)) == (NOW, anchor)


def test_an_anchor_config_names_the_next_such_day(w: World) -> None:
    config = {"day_of_month": 1, "hour": 0, "minute": 0, "second": 0}
    subscription = w.subscribe(billing_cycle_anchor_config=config)
    assert period(subscription) == (NOW, unix("2026-04-01T00:00:00+00:00"))
    assert subscription.billing_cycle_anchor == unix("2026-04-01T00:00:00+00:00")


def test_a_subscription_has_at_most_20_items(w: World) -> None:
    items = []
    for number in range(21):
        price: Any = {
            "currency": "usd",
            "product": w.product,
            "unit_amount": number + 1,
            "recurring": {"interval": "month"},
        }
        items.append({"price": w.client.v1.prices.create(price).id})
    with pytest.raises(stripe.InvalidRequestError):
        w.subscribe(items=items)
    assert len(w.subscribe(items=items[:20])["items"].data) == 20


# -- invoices ---


def test_a_period_becomes_a_draft_that_is_finalized_and_paid_an_hour_later(w: World) -> None:
    """12,345,678 micro-dollars at 0.0001 cent are 1,234.5678 cents: 1,235."""
    subscription = w.subscribe()
    w.use("12345678", "e1")
    before = len(w.double.events)
    draft = w.double.end_period(w.customer)
    invoice = w.client.v1.invoices.retrieve(draft["id"])
    line = invoice.lines.data[0]
    assert (invoice.status, invoice.total, invoice.billing_reason) == ("draft", 1_235, "subscription_cycle")
    assert (line.amount, line.quantity, line.period.start, line.period.end) == (
        1_235,
        12_345_678,
        *period(subscription),
    )
    assert line.pricing is not None
    assert line.pricing.unit_amount_decimal == Decimal("0.0001")
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    assert invoice.parent.subscription_details.subscription == subscription.id
    assert "subscription" not in invoice
    w.double.clock.advance(HOUR_S - 1)
    assert w.client.v1.invoices.retrieve(invoice.id or "").status == "draft"
    w.double.clock.advance(1)
    paid = w.client.v1.invoices.retrieve(invoice.id or "", {"expand": ["payments", "customer"]})
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 1_235, 0)
    assert isinstance(paid.customer, stripe.Customer)
    assert paid.payments is not None
    assert paid.payments.data[0].payment.payment_intent == w.double.charges_of(w.customer)[0]["payment_intent"]
    assert types_since(w, before) == [
        "invoice.upcoming",
        "invoice.created",
        "customer.subscription.updated",
        "invoice.finalized",
        "charge.succeeded",
        "invoice_payment.paid",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]


def test_late_usage_counts_until_finalization_and_never_after(w: World) -> None:
    subscription = w.subscribe()
    start, end = period(subscription)
    w.use("1000000", "e1", at=start)
    invoice_id = w.double.end_period(w.customer)["id"]
    w.use("1000000", "late", at=end - 1)
    w.use("7000000", "next period", at=end)
    assert w.client.v1.invoices.retrieve(invoice_id).total == 200
    w.double.clock.advance(hours=1)
    w.use("1000000", "too late", at=end - 2)
    assert w.client.v1.invoices.retrieve(invoice_id).total == 200
    assert w.double.end_period(w.customer)["total"] == 700


@pytest.mark.parametrize(
    ("value", "unit", "amount"),
    [
        ("30", "0.05", 2),
        ("29", "0.05", 1),
        ("49", "0.01", 0),
        ("50", "0.01", 1),
        ("-5", "1", 0),
        ("999999999999999", "0.0001", 100_000_000_000),
    ],
)
def test_a_line_is_rounded_once_to_the_nearest_cent(w: World, value: str, unit: str, amount: int) -> None:
    """The first row is the documentation's example: 30 x 0.05 = 1.5, billed as 2. A negative total is 0."""
    price = w.client.v1.prices.create(
        {
            "currency": "usd",
            "product": w.product,
            "unit_amount_decimal": Decimal(unit),
            "recurring": {"interval": "month", "usage_type": "metered", "meter": w.meter},
        }
    )
    w.subscribe(items=[{"price": price.id}])
    w.use(value, "e1")
    assert w.double.end_period(w.customer)["lines"]["data"][0]["amount"] == amount


@pytest.mark.parametrize(("mode", "amounts"), [("graduated", [1_000, 500]), ("volume", [1_000])])
def test_tiers_price_a_quantity_by_parts_or_as_a_whole(w: World, mode: str, amounts: list[int]) -> None:
    """10 cents up to 100, then 5 and 250 flat; 150 units: 100 x 10 and 50 x 5 + 250, or 150 x 5 + 250."""
    tiers = [{"up_to": 100, "unit_amount": 10}, {"up_to": "inf", "unit_amount": 5, "flat_amount": 250}]
    asked: Any = {
        "currency": "usd",
        "product": w.product,
        "billing_scheme": "tiered",
        "tiers_mode": mode,
        "tiers": tiers,
        "recurring": {"interval": "month", "usage_type": "metered", "meter": w.meter},
    }
    price = w.client.v1.prices.create(asked)
    assert "tiers" not in price
    assert len(w.client.v1.prices.retrieve(price.id, {"expand": ["tiers"]}).tiers or []) == 2
    w.subscribe(items=[{"price": price.id}])
    w.use("150", "e1")
    assert [line["amount"] for line in w.double.end_period(w.customer)["lines"]["data"]] == amounts


def test_less_than_the_minimum_charge_is_carried_to_the_next_invoice(w: World) -> None:
    w.subscribe()
    w.use("490000", "e1")
    w.double.end_period(w.customer)
    w.double.clock.advance(hours=1)
    assert w.client.v1.customers.retrieve(w.customer).balance == 49
    w.use("10000", "e2")
    second = w.double.end_period(w.customer)
    w.double.clock.advance(hours=1)
    assert (second["total"], second["starting_balance"], second["amount_paid"]) == (1, 49, 50)
    assert w.client.v1.customers.retrieve(w.customer).balance == 0


def test_a_draft_waits_up_to_72_hours_for_invoice_created_to_be_acknowledged(w: World) -> None:
    with receiving() as receiver:
        w.double.add_webhook(receiver.url, ["invoice.created"])
        w.subscribe()
        w.use("1000000", "e1")
        w.double.policy.retry_delays_s = (30 * DAY_S,)
        receiver.answers = [500] * 9
        invoice_id = w.double.end_period(w.customer)["id"]
        w.double.clock.advance(hours=71)
        assert w.client.v1.invoices.retrieve(invoice_id).status == "draft"
        w.double.clock.advance(hours=1)
        assert w.client.v1.invoices.retrieve(invoice_id).status == "paid"


def test_a_preview_shows_the_running_period_and_stores_nothing(w: World) -> None:
    subscription = w.subscribe()
    w.use("5000000", "e1")
    preview = w.client.v1.invoices.create_preview({"customer": w.customer, "subscription": subscription.id})
    assert (preview.total, preview.lines.data[0].quantity) == (500, 5_000_000)
    assert len(w.client.v1.invoices.list().data) == 1


def test_usage_before_the_subscription_is_billed_when_it_is_backdated(w: World) -> None:
    w.use("1000000", "e1", at=NOW - 5 * DAY_S)
    w.subscribe(backdate_start_date=NOW - 10 * DAY_S)
    w.use("2000000", "e2", at=NOW)
    first = w.client.v1.invoices.list().data[0]
    assert (first.billing_reason, first.total) == ("subscription_create", 100)
    assert w.double.end_period(w.customer)["total"] == 200


# -- changes and endings ---


def _other_price(w: World, unit: str) -> str:
    recurring = {"interval": "month", "usage_type": "metered", "meter": w.meter}
    asked: Any = {
        "currency": "usd",
        "product": w.product,
        "recurring": recurring,
        "unit_amount_decimal": unit,
    }
    return w.client.v1.prices.create(asked).id


@pytest.mark.parametrize(("mode", "amounts"), [("flexible", [100, 400]), ("classic", [400])])
def test_a_price_swap_bills_old_usage_in_flexible_mode_and_drops_it_in_classic(
    w: World, mode: str, amounts: list[int]
) -> None:
    """1,000,000 at 0.0001 before, 2,000,000 at 0.0002 after."""
    subscription = w.subscribe(billing_mode={"type": mode})
    w.use("1000000", "before")
    w.double.clock.advance(days=3)
    item = subscription["items"].data[0].id
    w.client.v1.subscriptions.update(subscription.id, {"items": [{"id": item, "price": _other_price(w, "0.0002")}]})
    w.use("2000000", "after")
    assert [line["amount"] for line in w.double.end_period(w.customer)["lines"]["data"]] == amounts


@pytest.mark.parametrize(("invoice_now", "total"), [(True, 100), (False, None)])
def test_an_immediate_end_bills_open_usage_only_when_asked(w: World, invoice_now: bool, total: int | None) -> None:
    subscription = w.subscribe()
    w.use("1000000", "e1")
    w.double.clock.advance(days=1)
    ended = w.client.v1.subscriptions.cancel(subscription.id, {"invoice_now": invoice_now})
    assert ended.status == "canceled"
    assert ended.ended_at == NOW + DAY_S
    invoices = w.client.v1.invoices.list({"subscription": subscription.id}).data
    assert [each.total for each in invoices if each.billing_reason != "subscription_create"] == (
        [] if total is None else [total]
    )
    w.double.clock.advance(days=60)
    assert len(w.client.v1.invoices.list().data) == len(invoices)
    assert w.client.v1.subscriptions.list().data == []
    assert len(w.client.v1.subscriptions.list({"status": "all"}).data) == 1


def test_an_end_at_the_periods_end_bills_the_last_period(w: World) -> None:
    subscription = w.subscribe()
    w.client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    w.use("1000000", "e1")
    assert w.double.end_period(w.customer)["total"] == 100
    assert w.client.v1.subscriptions.retrieve(subscription.id).status == "canceled"


def test_items_come_and_go_by_their_own_endpoints(w: World) -> None:
    subscription = w.subscribe()
    item = w.client.v1.subscription_items.create({"subscription": subscription.id, "price": _other_price(w, "1")})
    assert len(w.client.v1.subscription_items.list({"subscription": subscription.id}).data) == 2
    gone = w.client.v1.subscription_items.delete(item.id)
    assert gone.deleted is True
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.subscription_items.delete(subscription["items"].data[0].id)


def test_a_deleted_customer_ends_its_subscriptions_and_answers_as_a_stub(w: World) -> None:
    w.subscribe()
    before = len(w.double.events)
    w.client.v1.customers.delete(w.customer)
    assert types_since(w, before) == ["customer.subscription.deleted", "customer.deleted"]
    assert w.client.v1.customers.retrieve(w.customer).deleted is True
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.customers.update(w.customer, {"name": "ghost"})
