"""Tokens mode in the ledger: which meters and prices of tokens there are at Stripe, and which count whose tokens.

Invariant: to one customer a meter has one price, for ever. A customer's first price for a model's tokens is counted by
the first meter of the model and type, the next price by the second, and so on; a price that comes back finds its meter
again. So a change of prices within a billing period changes no price of an item at Stripe, what was used before is
billed as it was, and usage that comes late finds the price at which it was made. Meters are shared by all customers,
each at its own price, so there are as many as the customer with the most changes has had prices.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing.clock import Instant
from billing.ledger import schema
from billing.ledger.stripe_objects import Kind

_METERS, _PRICES, _LANES = schema.stripe_meters, schema.stripe_prices, schema.stripe_lanes
_CUSTOMERS = schema.customers

AMOUNT = "amount"
"""The token type of a lane that counts amounts; its model is "" and its unit a millionth of the currency."""


@dataclass(frozen=True, slots=True)
class TokenMeter:
    """One meter of a model's tokens; `number` counts the meters of the same model and type from 1."""

    event_name: str
    model: str
    token_type: str
    number: int
    meter_id: str
    product_id: str


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """A price on a meter of tokens, in picounits for a unit."""

    event_name: str
    unit_pico: int
    currency: str
    price_id: str


@dataclass(frozen=True, slots=True)
class LaneRow:
    """Which meter counts a customer's tokens at a price; opened once the subscription `subscription_id` bills it.

    `opens_s` is since when it does, in unix seconds; usage is timed there at the earliest.
    """

    customer_id: str
    event_name: str
    model: str
    token_type: str
    unit_pico: int
    number: int
    subscription_id: str | None
    opens_s: int | None


def meters(conn: sa.Connection) -> list[TokenMeter]:
    """Return every meter of tokens, by model, type and number."""
    columns = [_METERS.c[name] for name in TokenMeter.__slots__]
    query = sa.select(*columns).order_by(_METERS.c.model, _METERS.c.token_type, _METERS.c.number)
    return [TokenMeter(*row) for row in conn.execute(query)]


def prices(conn: sa.Connection) -> list[TokenPrice]:
    """Return every price of a meter of tokens, by meter."""
    columns = [_PRICES.c[name] for name in TokenPrice.__slots__]
    query = sa.select(*columns).order_by(_PRICES.c.event_name, _PRICES.c.unit_pico, _PRICES.c.currency)
    return [TokenPrice(*row) for row in conn.execute(query)]


def price_ids(conn: sa.Connection) -> dict[str, TokenPrice]:
    """Return each price of tokens by its id at Stripe."""
    return {price.price_id: price for price in prices(conn)}


def ids(conn: sa.Connection) -> dict[tuple[str, int], dict[Kind, str]]:
    """Return what is recorded for each meter and price in picounits: the ids at Stripe."""
    named = {meter.event_name: meter for meter in meters(conn)}
    return {
        (price.event_name, price.unit_pico): {
            Kind.METER: named[price.event_name].meter_id,
            Kind.PRODUCT: named[price.event_name].product_id,
            Kind.PRICE: price.price_id,
        }
        for price in prices(conn)
        if price.event_name in named
    }


def record_meter(conn: sa.Connection, meter: TokenMeter, at: Instant) -> bool:
    """Keep a meter that setup made or adopted; False if it is known so already."""
    values = {name: getattr(meter, name) for name in TokenMeter.__slots__}
    known = conn.execute(sa.select(_METERS).where(_METERS.c.event_name == meter.event_name)).mappings().one_or_none()
    if known is not None and all(known[name] == value for name, value in values.items()):
        return False
    conn.execute(sa.delete(_METERS).where(_METERS.c.event_name == meter.event_name))
    conn.execute(sa.insert(_METERS).values(**values, recorded_at=at))
    return True


def record_price(conn: sa.Connection, price: TokenPrice, at: Instant) -> bool:
    """Keep a price that setup made or adopted; False if it is known so already."""
    key = (
        _PRICES.c.event_name == price.event_name,
        _PRICES.c.unit_pico == price.unit_pico,
        _PRICES.c.currency == price.currency,
    )
    if conn.scalar(sa.select(_PRICES.c.price_id).where(*key)) == price.price_id:
        return False
    conn.execute(sa.delete(_PRICES).where(*key))
    values = {name: getattr(price, name) for name in TokenPrice.__slots__}
    conn.execute(sa.insert(_PRICES).values(**values, recorded_at=at))
    return True


def lanes(conn: sa.Connection, customer_ids: Collection[str]) -> list[LaneRow]:
    """Return the lanes of these customers, as they were made."""
    columns = [_LANES.c[name] for name in LaneRow.__slots__]
    query = sa.select(*columns).where(_LANES.c.customer_id.in_(sorted(customer_ids)))
    return [LaneRow(*row) for row in conn.execute(query.order_by(_LANES.c.created_at, _LANES.c.event_name))]


def subscriptions(conn: sa.Connection, customer_ids: Collection[str]) -> dict[str, str | None]:
    """Return the subscription of each of these customers that bills it."""
    query = sa.select(_CUSTOMERS.c.id, _CUSTOMERS.c.stripe_subscription_id)
    return {row[0]: row[1] for row in conn.execute(query.where(_CUSTOMERS.c.id.in_(sorted(customer_ids))))}


def next_number(conn: sa.Connection, customer_id: str, model: str, token_type: str) -> int:
    """Return the number of the customer's next meter of a model's tokens."""
    query = sa.select(sa.func.count()).select_from(_LANES)
    of_type = (_LANES.c.customer_id == customer_id, _LANES.c.model == model, _LANES.c.token_type == token_type)
    return 1 + int(conn.scalar(query.where(*of_type)) or 0)


def assign(conn: sa.Connection, lane: LaneRow, at: Instant) -> None:
    """Say for ever which meter counts a customer's tokens at a price; one that has its meter keeps it."""
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    values = {name: getattr(lane, name) for name in LaneRow.__slots__}
    conn.execute(insert(_LANES).values(**values, created_at=at).on_conflict_do_nothing())


def open_lane(conn: sa.Connection, customer_id: str, event_name: str, subscription_id: str, opens_s: int) -> None:
    """Record that a subscription bills a lane from an instant on."""
    query = sa.update(_LANES).where(_LANES.c.customer_id == customer_id, _LANES.c.event_name == event_name)
    conn.execute(query.values(subscription_id=subscription_id, opens_s=opens_s))


def idle(conn: sa.Connection, customer_id: str, since_s: int) -> list[LaneRow]:
    """Return the open lanes of tokens without a batch timed since then, nor one of which Stripe's count is unknown."""
    batches = schema.meter_batches
    is_needed = sa.exists().where(
        batches.c.customer_id == customer_id,
        batches.c.event_name == _LANES.c.event_name,
        sa.or_(batches.c.timestamp_s >= since_s, batches.c.state.not_in(["confirmed", "accepted"])),
    )
    columns = [_LANES.c[name] for name in LaneRow.__slots__]
    query = sa.select(*columns).where(
        _LANES.c.customer_id == customer_id,
        _LANES.c.token_type != AMOUNT,
        _LANES.c.subscription_id.is_not(None),
        _LANES.c.opens_s < since_s,
        ~is_needed,
    )
    return [LaneRow(*row) for row in conn.execute(query.order_by(_LANES.c.created_at, _LANES.c.event_name))]


def unsent(conn: sa.Connection, customer_id: str) -> set[str]:
    """Return the meters for which the customer has batches that Stripe can not have counted."""
    batches = schema.meter_batches
    query = sa.select(batches.c.event_name).distinct()
    is_unsent = (batches.c.state.in_(["pending", "rejected"]), batches.c.first_sent_at.is_(None))
    return set(conn.execute(query.where(batches.c.customer_id == customer_id, *is_unsent)).scalars())


def close_lane(conn: sa.Connection, customer_id: str, event_name: str) -> None:
    """Record that no subscription bills a lane any more; usage at its price opens it again."""
    query = sa.update(_LANES).where(_LANES.c.customer_id == customer_id, _LANES.c.event_name == event_name)
    conn.execute(query.values(subscription_id=None, opens_s=None))


def units_by_meter(conn: sa.Connection, states: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return for each meter the units in batches of these states, and in all others."""
    batches = schema.meter_batches
    is_in = batches.c.state.in_(sorted(states))
    query = sa.select(
        batches.c.event_name,
        sa.func.sum(sa.case((is_in, batches.c.units), else_=0)),
        sa.func.sum(sa.case((is_in, 0), else_=batches.c.units)),
    ).group_by(batches.c.event_name)
    return {row[0]: (int(row[1]), int(row[2])) for row in conn.execute(query.order_by(batches.c.event_name))}
