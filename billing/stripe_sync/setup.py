"""What Weir needs at Stripe, compared with what is there: a plan, then its application.

Amount mode: one meter that sums units of 10⁻⁶ of the currency's major unit, one product, and one monthly metered price
of exactly a unit. So a margin never needs a price of its own at Stripe, and never changes one. Tokens mode needs these,
too (every subscription has that item; `token_setup` says why), and the same three for each kind of token.

Invariant: setup run twice changes nothing the second time. What exists is adopted (the meter by its event name, the
price by its lookup key, the product by the price or by our mark in its metadata). Meters and prices can not be changed
at Stripe; where one is not as needed, nothing is done and the error says what to do.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from billing.clock import Instant
from billing.config import Config
from billing.errors import StripeError
from billing.ledger import audit, facts, stripe_objects
from billing.ledger.database import Database
from billing.ledger.stripe_objects import Kind
from billing.money import PICO_PER_MAJOR
from billing.stripe_sync.minor_units import pico_per_minor
from billing.stripe_sync.port import Meter, Price, Product, StripePort

PRODUCT_NAME = "Model usage"
UNIT_LABEL = "millionth"


class Action(StrEnum):
    """What the plan does with one object."""

    ADOPT = "adopt"
    CREATE = "create"
    REACTIVATE = "reactivate"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be at Stripe; `unit_amount` is the price of a unit in the currency's minor unit.

    `mark` is how the product is found again, `event_name` unless it is given. `unit_pico` is part of the price's
    lookup key where a meter has several prices.
    """

    event_name: str
    currency: str
    unit_amount: str
    name: str = PRODUCT_NAME
    unit_label: str = UNIT_LABEL
    mark: str = ""
    unit_pico: int | None = None

    @property
    def product_mark(self) -> str:
        """What the product's metadata says."""
        return self.mark or self.event_name

    @property
    def lookup_key(self) -> str:
        """The name under which the price is found again."""
        known = f"{self.event_name}_{self.currency}"
        return known if self.unit_pico is None else f"{known}_{self.unit_pico}"


@dataclass(frozen=True, slots=True)
class Step:
    """One object and what is done with it; `stripe_id` is None for one that is yet to be created."""

    kind: Kind
    action: Action
    stripe_id: str | None
    detail: str


def wanted(config: Config) -> Wanted:
    """Return what the configuration needs in either mode, to bill amounts. Raises ConfigError for a currency."""
    return Wanted(config.stripe.meter_event_name, config.billing.currency, unit_amount(config.billing.currency))


def unit_amount(currency: str) -> str:
    """Return 10⁻⁶ of the major unit in the currency's minor unit: "0.0001" cents for usd."""
    return "0.000001" if pico_per_minor(currency) == PICO_PER_MAJOR else "0.0001"


def unit_text(unit_pico: int, currency: str) -> str:
    """Return a price in picounits in the currency's minor unit, exactly: "0.0000039" for 39,000 pico in usd."""
    per_minor = pico_per_minor(currency)
    whole, rest = divmod(unit_pico, per_minor)
    digits = len(str(per_minor)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".")


def plan(want: Wanted, meters: Iterable[Meter], products: Iterable[Product], price: Price | None) -> tuple[Step, ...]:
    """Compare; raises StripeError, with the remedy, where something is there that can not be used. Pure."""
    meter = _plan_meter(want, [meter for meter in meters if meter.event_name == want.event_name])
    product = _plan_product(want, products, price)
    return meter, product, _plan_price(want, price, meter)


def apply(want: Wanted, steps: Iterable[Step], port: StripePort) -> dict[Kind, str]:
    """Do what the plan says and return the ids; a repeated creation gives the same object (Idempotency-Key)."""
    ids: dict[Kind, str] = {}
    for step in steps:
        match step.action:
            case Action.ADOPT:
                assert step.stripe_id is not None, "what is adopted exists"
                ids[step.kind] = step.stripe_id
            case Action.REACTIVATE:
                assert step.stripe_id is not None, "what is reactivated exists"
                _reactivate(port, step.kind, step.stripe_id)
                ids[step.kind] = step.stripe_id
            case Action.CREATE:
                ids[step.kind] = _create(want, step.kind, ids, port)
    return ids


def run(config: Config, database: Database, port: StripePort, now: Instant, actor: str) -> tuple[Step, ...]:
    """Plan, apply and record the ids; return the steps with the ids of what was made."""
    want = wanted(config)
    with database.writing() as conn:
        facts.pin_currency(conn, want.currency, now)
    steps = preview(want, port)
    ids = apply(want, steps, port)
    with database.writing() as conn:
        for kind, stripe_id in ids.items():
            if stripe_objects.record(conn, kind, stripe_id, now):
                details = {"stripe_id": stripe_id}
                audit.record(conn, at=now, actor=actor, action="stripe.setup", subject=str(kind), details=details)
    return tuple(replace(step, stripe_id=ids[step.kind]) for step in steps)


def preview(want: Wanted, port: StripePort) -> tuple[Step, ...]:
    """Return the plan for what is at Stripe now, changing nothing."""
    return preview_from(want, port, port.meters(), port.products())


def preview_from(
    want: Wanted, port: StripePort, meters: Iterable[Meter], products: Iterable[Product]
) -> tuple[Step, ...]:
    """Return the plan, with the meters and products that Stripe has listed."""
    price = port.find_price(want.lookup_key)
    archived = None if price is None else port.find_product(price.product_id)
    return plan(want, meters, [*products, *([] if archived is None else [archived])], price)


def drift(known: Mapping[Kind, str], steps: Iterable[Step]) -> dict[Kind, str]:
    """Say what somebody changed at Stripe since the last setup, by what the plan finds there. Pure."""
    found: dict[Kind, str] = {}
    for step in steps:
        before = known.get(step.kind)
        if before is None:
            continue
        if step.action is Action.REACTIVATE and step.stripe_id == before:
            found[step.kind] = f"{before} was switched off at Stripe"
        elif step.stripe_id is None:
            found[step.kind] = f"{before} is gone, or no longer found by its name"
        elif step.stripe_id != before:
            found[step.kind] = f"{step.stripe_id} has taken the place of {before}"
    return found


def _reactivate(port: StripePort, kind: Kind, stripe_id: str) -> None:
    match kind:
        case Kind.METER:
            port.reactivate_meter(stripe_id)
        case Kind.PRODUCT:
            port.reactivate_product(stripe_id)
        case Kind.PRICE:
            port.reactivate_price(stripe_id)


def _plan_meter(want: Wanted, named: list[Meter]) -> Step:
    for meter in named:
        if meter.is_active:
            fault = _meter_fault(meter)
            if fault:
                raise StripeError(
                    f"the meter {meter.id} ({want.event_name}) {fault}, and Stripe can not change a meter: deactivate "
                    "it there, or set stripe.meter_event_name to another name; then run `weir stripe setup` again"
                )
            return Step(Kind.METER, Action.ADOPT, meter.id, f"sums {want.event_name}")
    for meter in named:
        if not _meter_fault(meter):
            return Step(Kind.METER, Action.REACTIVATE, meter.id, "deactivated: it would take no usage")
    return Step(Kind.METER, Action.CREATE, None, f"sums {want.event_name}")


def _meter_fault(meter: Meter) -> str:
    if meter.formula != "sum":
        return f"has the formula {meter.formula!r} instead of 'sum'"
    if meter.customer_key != "stripe_customer_id" or meter.value_key != "value":
        return f"reads {meter.customer_key!r} and {meter.value_key!r} instead of 'stripe_customer_id' and 'value'"
    if meter.window is not None:
        return f"counts only the last event of each {meter.window}"
    return ""


def _plan_product(want: Wanted, products: Iterable[Product], price: Price | None) -> Step:
    if price is not None:
        if any(product.id == price.product_id and not product.is_active for product in products):
            return Step(Kind.PRODUCT, Action.REACTIVATE, price.product_id, "archived: its price could not be used")
        return Step(Kind.PRODUCT, Action.ADOPT, price.product_id, f"the product of {price.id}")
    marked = [product.id for product in products if product.weir == want.product_mark and product.is_active]
    if marked:
        return Step(Kind.PRODUCT, Action.ADOPT, min(marked), f"marked weir={want.product_mark}")
    return Step(Kind.PRODUCT, Action.CREATE, None, want.name)


def _plan_price(want: Wanted, price: Price | None, meter: Step) -> Step:
    detail = f"{want.unit_amount} minor units of {want.currency} for a unit, monthly"
    if price is None:
        return Step(Kind.PRICE, Action.CREATE, None, detail)
    fault = _price_fault(want, price, meter)
    if fault:
        raise StripeError(
            f"the price {price.id} ({want.lookup_key}) {fault}, and Stripe can not change a price: take the lookup key "
            "away from it there, then run `weir stripe setup` again to make a new one"
        )
    if not price.is_active:
        return Step(Kind.PRICE, Action.REACTIVATE, price.id, "archived: no subscription could use it")
    return Step(Kind.PRICE, Action.ADOPT, price.id, detail)


def _price_fault(want: Wanted, price: Price, meter: Step) -> str:
    if price.currency != want.currency:
        return f"is in {price.currency} instead of {want.currency}"
    if price.unit_amount != want.unit_amount or price.has_transform:
        return f"charges {price.unit_amount or 'tiers'} instead of {want.unit_amount} for a unit"
    if (price.interval, price.interval_count) != ("month", 1):
        return f"is billed every {price.interval_count} {price.interval or 'time'} instead of every month"
    if price.meter_id != meter.stripe_id:
        return f"bills the meter {price.meter_id or 'none'} instead of {meter.stripe_id or 'a new one'}"
    return ""


def _create(want: Wanted, kind: Kind, ids: dict[Kind, str], port: StripePort) -> str:
    if kind is Kind.METER:
        return port.create_meter(want.event_name, want.name, _key(want, kind)).id
    if kind is Kind.PRODUCT:
        return port.create_product(want.name, want.unit_label, want.product_mark, _key(want, kind)).id
    product_id, meter_id = ids[Kind.PRODUCT], ids[Kind.METER]
    price = Price(
        id="",
        product_id=product_id,
        is_active=True,
        currency=want.currency,
        unit_amount=want.unit_amount,
        interval="month",
        interval_count=1,
        meter_id=meter_id,
        has_transform=False,
        weir=want.event_name,
    )
    return port.create_price(price, want.lookup_key, _key(want, kind, product_id, meter_id)).id


def _key(want: Wanted, kind: Kind, *parents: str) -> str:
    content = "|".join((want.event_name, want.currency, want.unit_amount, *parents))
    return f"weir-setup-{kind}-{hashlib.sha256(content.encode()).hexdigest()[:24]}"
