"""What is at Stripe against what is needed: which plan, and which sentence where there is none."""

from dataclasses import replace

import pytest

from billing.config import Billing, Config, Stripe
from billing.errors import ConfigError, StripeError
from billing.ledger.stripe_objects import Kind
from billing.stripe_sync import setup
from billing.stripe_sync.port import Meter, Price, Product
from billing.stripe_sync.setup import Action, Wanted

WANT = Wanted("weir_usage_micro", "usd", "0.0001")
METER = Meter("mtr_1", "weir_usage_micro", True, "sum", "stripe_customer_id", "value", None)
PRODUCT = Product("prod_1", True, "weir_usage_micro")
PRICE = Price("price_1", "prod_1", True, "usd", "0.0001", "month", 1, "mtr_1", False, "weir_usage_micro")


def actions(*args: object) -> list[tuple[Kind, Action, str | None]]:
    """The plan without its sentences."""
    return [(step.kind, step.action, step.stripe_id) for step in setup.plan(WANT, *args)]  # type: ignore[arg-type]


def test_an_empty_account_gets_all_three() -> None:
    """Meter first: the price needs its id."""
    assert actions([], [], None) == [
        (Kind.METER, Action.CREATE, None),
        (Kind.PRODUCT, Action.CREATE, None),
        (Kind.PRICE, Action.CREATE, None),
    ]


def test_what_exists_is_adopted() -> None:
    """The price names its product; other meters and products do not matter."""
    others = [replace(METER, id="mtr_0", event_name="other", formula="count")], [Product("prod_0", True, "")]
    assert actions([*others[0], METER], others[1], PRICE) == [
        (Kind.METER, Action.ADOPT, "mtr_1"),
        (Kind.PRODUCT, Action.ADOPT, "prod_1"),
        (Kind.PRICE, Action.ADOPT, "price_1"),
    ]


def test_a_product_with_our_mark_is_used_for_a_new_price() -> None:
    """A setup that was cut off after the product goes on from there; archived ones are left alone."""
    products = [replace(PRODUCT, id="prod_0", is_active=False), replace(PRODUCT, id="prod_2"), PRODUCT]
    assert actions([METER], products, None)[1:] == [
        (Kind.PRODUCT, Action.ADOPT, "prod_1"),
        (Kind.PRICE, Action.CREATE, None),
    ]


def test_what_was_deactivated_comes_back() -> None:
    """A meter that takes no events, a price that no subscription may use."""
    plan = actions([replace(METER, is_active=False)], [], replace(PRICE, is_active=False))
    assert plan[0] == (Kind.METER, Action.REACTIVATE, "mtr_1")
    assert plan[2] == (Kind.PRICE, Action.REACTIVATE, "price_1")


def test_a_deactivated_meter_of_another_shape_stays_so() -> None:
    """It is in nobody's way: the event name is free for an active one."""
    assert actions([replace(METER, is_active=False, formula="last")], [], None)[0][1] is Action.CREATE


@pytest.mark.parametrize(
    ("meter", "fault"),
    [
        (replace(METER, formula="count"), "formula 'count'"),
        (replace(METER, value_key="tokens"), "'tokens'"),
        (replace(METER, customer_key="user"), "'user'"),
        (replace(METER, window="hour"), "last event of each hour"),
    ],
)
def test_a_meter_of_the_wrong_shape_is_an_error_that_says_what_to_do(meter: Meter, fault: str) -> None:
    """Stripe can not change a meter."""
    with pytest.raises(StripeError, match=r"deactivate it there, or set stripe\.meter_event_name") as raised:
        actions([meter], [], None)
    assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("price", "fault"),
    [
        (replace(PRICE, currency="eur"), "is in eur instead of usd"),
        (replace(PRICE, unit_amount="0.001"), "charges 0.001 instead of 0.0001"),
        (replace(PRICE, unit_amount=""), "charges tiers instead of 0.0001"),
        (replace(PRICE, has_transform=True), "charges 0.0001 instead of 0.0001"),
        (replace(PRICE, interval="year"), "every 1 year instead of every month"),
        (replace(PRICE, interval_count=3), "every 3 month instead of every month"),
        (replace(PRICE, meter_id="mtr_9"), "bills the meter mtr_9 instead of mtr_1"),
        (replace(PRICE, meter_id=""), "bills the meter none instead of mtr_1"),
    ],
)
def test_a_price_that_charges_otherwise_is_an_error_that_says_what_to_do(price: Price, fault: str) -> None:
    """Stripe can not change a price."""
    with pytest.raises(StripeError, match="take the lookup key away") as raised:
        actions([METER], [], price)
    assert fault in str(raised.value)


def test_a_price_without_its_meter_is_an_error() -> None:
    """The meter was replaced: the old price would count nothing of ours."""
    with pytest.raises(StripeError, match="bills the meter mtr_1 instead of a new one"):
        actions([], [], PRICE)


@pytest.mark.parametrize(("currency", "amount"), [("usd", "0.0001"), ("eur", "0.0001"), ("jpy", "0.000001")])
def test_a_unit_is_a_millionth_of_the_major_unit(currency: str, amount: str) -> None:
    """In cents, or in yen, which have no cents. A million units of 0.0001 cents are 100 cents."""
    assert setup.unit_amount(currency) == amount


@pytest.mark.parametrize("currency", ["ugx", "kwd"])
def test_a_currency_whose_minor_unit_is_unclear_is_refused(currency: str) -> None:
    """A wrong guess would bill 10 or 100 times too much."""
    with pytest.raises(ConfigError, match="minor unit"):
        setup.unit_amount(currency)


def test_the_configuration_says_what_is_wanted() -> None:
    """Event name, currency, lookup key: the same in either mode, since tokens mode bills amounts, too."""
    config = Config(billing=Billing(currency="jpy"), stripe=Stripe(meter_event_name="mine"))
    assert setup.wanted(config) == Wanted("mine", "jpy", "0.000001")
    assert setup.wanted(config).lookup_key == "mine_jpy"
    assert setup.wanted(Config(stripe=Stripe(mode="tokens"))) == setup.wanted(Config())
    texts = [setup.unit_text(pico, currency) for pico, currency in ((39_000, "usd"), (1, "usd"), (10**12, "jpy"))]
    assert texts == ["0.0000039", "0.0000000001", "1"]
