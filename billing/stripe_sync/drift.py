"""What somebody changed at Stripe since `weir stripe setup`: a meter switched off, a price replaced, an item edited.

Invariant: nothing is changed here. Each finding names the object, what is wrong with it, what that does to billing, and
what mends it. Stripe can change neither a meter's sums nor a price's amount: an edit in the Dashboard makes a new price
and archives the old one, and moves its lookup key. So that is what is looked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from billing.config import Config
from billing.errors import StripeError
from billing.ledger import stripe_objects, token_meters
from billing.ledger.database import Database
from billing.ledger.stripe_objects import Kind
from billing.ledger.token_meters import TokenMeter, TokenPrice
from billing.stripe_sync import setup, token_setup
from billing.stripe_sync.port import Item, Meter, Product, StripePort
from billing.stripe_sync.setup import Wanted
from billing.stripe_sync.token_parts import Rate, TokenType

ENDED = ("canceled", "incomplete_expired")
ITEMS_SHOWN_MAX = 10
SETUP = "run `weir stripe setup`"
CONSEQUENCES = {
    Kind.METER: "usage is refused until then, and kept",
    Kind.PRODUCT: "no new subscription can be made",
    Kind.PRICE: "customers who subscribe from now on would be billed by another price",
}


@dataclass(frozen=True, slots=True)
class Drift:
    """One object that is not as setup left it."""

    kind: str
    stripe_id: str
    fault: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Known:
    """What is wanted at Stripe, and the ids that were recorded for it."""

    want: Wanted
    ids: Mapping[Kind, str]


def look(config: Config, database: Database, port: StripePort) -> list[Drift]:
    """Compare everything that was recorded with what is at Stripe now. Raises StripeError if it can not be asked."""
    with database.reading() as conn:
        amounts = stripe_objects.known(conn)
        meters, prices = token_meters.meters(conn), token_meters.prices(conn)
    if not amounts and not meters:
        return []
    there, products = port.meters(), port.products()
    known = [_Known(setup.wanted(config), amounts), *_of_tokens(config, meters, prices)]
    return [each for one in known for each in _compare(one, port, there, products)]


def of_items(items: Iterable[Item], meter_id: str, price_id: str, subscription_id: str) -> Drift | None:
    """Say what is wrong with the item of a living subscription that bills our meter; None if all is well. Pure."""
    ours = [item for item in items if item.meter_id == meter_id]
    if not ours:
        fault = "has no item for our meter: usage is counted there, and on no invoice"
        remedy = "add the price to the subscription at Stripe"
    elif len(ours) > 1:
        fault, remedy = "has several items on our meter: each bills all usage", "remove all but one at Stripe"
    elif ours[0].price_id != price_id:
        fault = f"bills our meter at {ours[0].price_id} instead of {price_id}"
        remedy = f"put {price_id} back at Stripe"
    else:
        return None
    return Drift("subscription", subscription_id, fault, remedy)


def _of_tokens(config: Config, meters: Sequence[TokenMeter], prices: Iterable[TokenPrice]) -> Iterator[_Known]:
    named = {meter.event_name: meter for meter in meters}
    for price in prices:
        meter = named.get(price.event_name)
        if meter is not None and price.currency == config.billing.currency:
            rate = Rate(meter.model, TokenType(meter.token_type), price.unit_pico)
            ids = {Kind.METER: meter.meter_id, Kind.PRODUCT: meter.product_id, Kind.PRICE: price.price_id}
            yield _Known(token_setup.kept(config, rate, meter.number, meter.event_name).want, ids)


def _compare(known: _Known, port: StripePort, meters: Sequence[Meter], products: Sequence[Product]) -> Iterator[Drift]:
    try:
        steps = setup.preview_from(known.want, port, meters, products)
    except StripeError as error:
        yield Drift(known.want.event_name, known.ids.get(Kind.PRICE, ""), str(error), "as it says")
        return
    for kind, fault in setup.drift(known.ids, steps).items():
        yield Drift(str(kind), known.ids[kind], fault, f"{SETUP}; {CONSEQUENCES[kind]}")
