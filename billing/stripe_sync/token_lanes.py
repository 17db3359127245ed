"""Tokens mode before a push: usage that waits gets a meter at its price, and an item of its subscription that bills it.

Invariant: usage is assigned to a meter only when the customer's subscription has an item for it, and is not timed
before the item was made: Stripe bills an item's usage from there. Which meter it is was written down before Stripe was
asked, for ever, so a crash at any point is made good by the next round, which adopts what it finds.

Stripe takes twenty items in a subscription (https://docs.stripe.com/api/subscriptions/create, `items`). Before the
twenty-first is added, items that billed nothing in a whole period, and whose period is invoiced, are taken away; when
none is, the rate goes without a meter, and its usage is billed in millionths: the same money, on one line.
Customers for whom Stripe can not be asked wait, with all their usage.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from billing import ids
from billing.clock import SECOND_US, Clock, Instant
from billing.config import Config
from billing.errors import StripeError
from billing.ledger import outbox, periods, token_meters, versions
from billing.ledger.database import Connection, Database
from billing.ledger.outbox import Delta
from billing.ledger.stripe_objects import Kind
from billing.ledger.token_meters import AMOUNT, LaneRow
from billing.money import PICO_PER_MICRO
from billing.stripe_sync import token_setup
from billing.stripe_sync.port import Item, StripePort, Subscription
from billing.stripe_sync.retry import TIMESTAMP_AGE_US_MAX
from billing.stripe_sync.token_parts import Lane, Rate, Tariff, Tariffs, TokenType

logger = logging.getLogger("weir.stripe")

ACTOR = "stripe"
ITEMS_MAX = 20
OPENED_CUSTOMERS_MAX = 500
"""Customers for whom items are made in one round: some calls to Stripe each, while all others wait to be pushed."""

_ENDED = ("canceled", "incomplete_expired")


@dataclass(frozen=True, slots=True)
class TokenLanes:
    """How to get meters for usage: the configuration, the port, the clock."""

    config: Config
    database: Database
    port: StripePort
    now: Clock

    def prepare(self, deltas: Sequence[Delta]) -> Tariffs:
        """Return the tariffs of the customers in `deltas`, after making what is lacking at Stripe.

        A customer for whom that failed has none: its usage waits for the next round.
        """
        customer_ids = sorted({delta.customer_id for delta in deltas})
        with self.database.reading() as conn:
            refs = {delta.price_ref for delta in deltas if delta.price_ref is not None}
            tariffs = Tariffs(versions.load_prices(conn, refs), {})
            subscriptions = token_meters.subscriptions(conn, customer_ids)
            known = _by_customer(token_meters.lanes(conn, customer_ids))
        needed = _needed(deltas, tariffs)
        found: dict[str, Tariff] = {}
        opened = 0
        for customer_id in customer_ids:
            subscription_id = subscriptions.get(customer_id)
            lanes, rates = known.get(customer_id, []), needed.get(customer_id, set())
            if subscription_id is None:
                found[customer_id] = _tariff(lanes, rates, None)
                continue
            if rates - _open_rates(lanes, subscription_id):
                opened += 1
                if opened > OPENED_CUSTOMERS_MAX:
                    continue
                try:
                    lanes = self._open(customer_id, subscription_id, lanes, rates)
                except StripeError as error:
                    fields = {"customer_id": customer_id, "error": str(error)[:300]}
                    logger.warning("stripe.tokens.waiting", extra=fields)
                    continue
            found[customer_id] = _tariff(lanes, rates, subscription_id)
        return Tariffs(tariffs.prices, found)

    def reopen(self, customer_id: str, subscription_id: str) -> None:
        """Let a new subscription bill what is assigned to meters, and was sent nowhere yet. Raises StripeError."""
        with self.database.reading() as conn:
            lanes = token_meters.lanes(conn, [customer_id])
            waiting = token_meters.unsent(conn, customer_id)
        rates = {rate for lane in lanes if lane.event_name in waiting and (rate := _rate_of(lane)) is not None}
        if rates - _open_rates(lanes, subscription_id):
            self._open(customer_id, subscription_id, lanes, rates)

    def _open(
        self, customer_id: str, subscription_id: str, lanes: Sequence[LaneRow], rates: set[Rate]
    ) -> list[LaneRow]:
        """Give each rate its meter and its item; return the customer's lanes. Raises StripeError."""
        subscription = self.port.find_subscription(subscription_id)
        if subscription is None or subscription.status in _ENDED:
            return list(lanes)
        items = self.port.items(subscription_id)
        for rate in sorted(rates - _open_rates(lanes, subscription_id)):
            lane = self._assigned(customer_id, lanes, rate)
            price_id = self._price(rate, lane)
            item = next((each for each in items if each.price_id == price_id), None)
            if item is None:
                _refuse_another_price(items, price_id, self._meter_id(lane.event_name), subscription)
                items = self._with_room(customer_id, items, rates, subscription)
                if len(items) >= ITEMS_MAX:
                    fields = {"customer_id": customer_id, "model": rate.model, "token_type": str(rate.token_type)}
                    logger.warning("stripe.tokens.no_room", extra=fields | {"items": len(items)})
                    continue
                item = self.port.add_item(subscription_id, price_id, f"weir-item-{ids.uuid7()}")
                items = [*items, item]
            with self.database.writing() as conn:
                opens_s = max(item.period_start_s, item.created_s)
                token_meters.open_lane(conn, customer_id, lane.event_name, subscription_id, opens_s)
                oldest_s = (self.now() - TIMESTAMP_AGE_US_MAX) // SECOND_US
                outbox.not_before(conn, customer_id, lane.event_name, opens_s, oldest_s)
        with self.database.reading() as conn:
            return token_meters.lanes(conn, [customer_id])

    def _assigned(self, customer_id: str, lanes: Iterable[LaneRow], rate: Rate) -> LaneRow:
        """Return which meter counts a rate for a customer, written down before Stripe hears of it."""
        for lane in lanes:
            if _rate_of(lane) == rate:
                return lane
        with self.database.writing() as conn:
            number = token_meters.next_number(conn, customer_id, rate.model, rate.token_type)
            name = token_setup.event_name(self.config, rate.model, rate.token_type, number)
            row = LaneRow(customer_id, name, rate.model, rate.token_type, rate.unit_pico, number, None, None)
            token_meters.assign(conn, row, self.now())
        return row

    def _price(self, rate: Rate, lane: LaneRow) -> str:
        with self.database.reading() as conn:
            prices = token_meters.prices(conn)
        key = (lane.event_name, rate.unit_pico, self.config.billing.currency)
        for price in prices:
            if (price.event_name, price.unit_pico, price.currency) == key:
                return price.price_id
        want = token_setup.kept(self.config, rate, lane.number, lane.event_name)
        ((_, steps),) = token_setup.ensure(self.database, self.port, [want], self.now(), ACTOR)
        return next(step.stripe_id for step in steps if step.kind is Kind.PRICE and step.stripe_id is not None)

    def _meter_id(self, event_name: str) -> str:
        with self.database.reading() as conn:
            return next(meter.meter_id for meter in token_meters.meters(conn) if meter.event_name == event_name)

    def _with_room(
        self, customer_id: str, items: list[Item], rates: set[Rate], subscription: Subscription
    ) -> list[Item]:
        """Take away an item that billed nothing since the last invoice, and is not needed, if there is no room."""
        if len(items) < ITEMS_MAX:
            return items
        with self.database.reading() as conn:
            billed = periods.billed_until(conn, [customer_id]).get(customer_id)
            idle = [] if billed is None else token_meters.idle(conn, customer_id, billed // SECOND_US)
            prices = {(each.event_name, each.unit_pico): each.price_id for each in token_meters.prices(conn)}
        for lane in idle:
            price_id = prices.get((lane.event_name, lane.unit_pico))
            item = next((each for each in items if each.price_id == price_id), None)
            if item is not None and _rate_of(lane) not in rates:
                with self.database.writing() as conn:
                    token_meters.close_lane(conn, customer_id, lane.event_name)
                self.port.remove_item(item.id)
                fields = {"customer_id": customer_id, "subscription": subscription.id, "item": item.id}
                logger.info("stripe.tokens.item_removed", extra=fields)
                return [each for each in items if each is not item]
        return items


def open_amounts(
    conn: Connection, customer_id: str, event_name: str, subscription_id: str, opens_s: int, at: Instant
) -> None:
    """Record since when a customer's amounts are billed: from the start of the subscription that links it."""
    row = LaneRow(customer_id, event_name, "", AMOUNT, PICO_PER_MICRO, 1, subscription_id, opens_s)
    token_meters.assign(conn, row, at)
    token_meters.open_lane(conn, customer_id, event_name, subscription_id, opens_s)


def _needed(deltas: Iterable[Delta], tariffs: Tariffs) -> dict[str, set[Rate]]:
    found: dict[str, set[Rate]] = {}
    for delta in deltas:
        found.setdefault(delta.customer_id, set()).update(tariffs.parts(delta) or ())
    return found


def _by_customer(rows: Iterable[LaneRow]) -> dict[str, list[LaneRow]]:
    found: dict[str, list[LaneRow]] = {}
    for row in rows:
        found.setdefault(row.customer_id, []).append(row)
    return found


def _rate_of(lane: LaneRow) -> Rate | None:
    return None if lane.token_type == AMOUNT else Rate(lane.model, TokenType(lane.token_type), lane.unit_pico)


def _open_rates(lanes: Iterable[LaneRow], subscription_id: str) -> set[Rate]:
    is_open = (lane for lane in lanes if lane.subscription_id == subscription_id and lane.opens_s is not None)
    return {rate for lane in is_open if (rate := _rate_of(lane)) is not None}


def _tariff(lanes: Iterable[LaneRow], rates: set[Rate], subscription_id: str | None) -> Tariff:
    """Return the customer's tariff: the rates that it needs and that no item bills go without."""
    found: dict[Rate, Lane] = {}
    amount_opens_s = None
    for lane in lanes:
        if lane.subscription_id != subscription_id or lane.opens_s is None:
            continue
        rate = _rate_of(lane)
        if rate is None:
            amount_opens_s = lane.opens_s
        else:
            found[rate] = Lane(lane.event_name, lane.opens_s)
    return Tariff(found, frozenset(rates - found.keys()), amount_opens_s)


def _refuse_another_price(items: Iterable[Item], price_id: str, meter_id: str, subscription: Subscription) -> None:
    """Two items on one meter would bill its usage twice."""
    for item in items:
        if item.meter_id == meter_id:
            raise StripeError(
                f"{subscription.id} bills the meter {meter_id} at {item.price_id} instead of {price_id}; take that "
                "item away at Stripe"
            )
