"""Subscriptions and their items: periods, price changes, and endings.

Documented: periods live on the items; at most 20 items; a month's end stays the month's end; `billing_mode`
is flexible unless told otherwise. A price swapped in flexible mode leaves its usage to be invoiced at the old
price, in classic mode that usage is silently dropped. An immediate cancellation bills the open usage only
with `invoice_now`. Assumed: all items of a subscription share one interval; trials, schedules and coupons are
not modelled.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from . import billing_cycle
from .account import Account, Json, LineSource, Segment
from .clock import month_days, next_boundary
from .errors import invalid
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route

ENDED = frozenset({"canceled", "incomplete_expired"})
ITEMS_MAX = 20
FIELDS = "cancel_at_period_end collection_method days_until_due description metadata"

EMPTY = (
    "application application_fee_percent billing_thresholds cancel_at canceled_at default_payment_method"
    " default_source ended_at latest_invoice next_pending_invoice_item_invoice on_behalf_of"
    " pause_collection pending_invoice_item_interval pending_setup_intent pending_update schedule"
    " test_clock transfer_data trial_end trial_start"
)
"""Fields of a subscription that begin as null."""


def create(account: Account, call: Call) -> Json:
    """POST /v1/subscriptions"""
    asked = call.parameters
    customer = account.get("customer", asked.get("customer", ""), param="customer")
    prices = [account.get("price", each.get("price", ""), param="items") for each in asked.get("items", [])]
    _check_items(prices)
    now = account.now()
    start = asked.get("backdate_start_date", now)
    if start > now:
        raise invalid("`backdate_start_date` must be in the past.", param="backdate_start_date", is_stored=False)
    anchor = _anchor(asked, start, now)
    currency = prices[0]["currency"]
    subscription_id = account.new_id("sub")
    subscription = _document(account, subscription_id, customer["id"], currency, start, anchor, asked)
    recurring = prices[0]["recurring"]
    period_end = next_boundary(anchor, recurring["interval"], recurring["interval_count"], max(start, now))
    for each, price in zip(asked["items"], prices, strict=True):
        item = _new_item(account, subscription, price, each, start, period_end)
        subscription["items"]["data"].append(item)
    if customer["currency"] is None:
        customer["currency"] = currency
    account.add(subscription)
    account.emit("customer.subscription.created", subscription)
    billing_cycle.start(account, subscription)
    return subscription


def _document(
    account: Account,
    subscription_id: str,
    customer_id: str,
    currency: str,
    start: int,
    anchor: int,
    asked: Json,
) -> Json:
    mode = asked.get("billing_mode", {"type": "flexible"})
    return {
        "id": subscription_id,
        "object": "subscription",
        **dict.fromkeys(EMPTY.split()),
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": anchor,
        "billing_cycle_anchor_config": _anchor_config(asked),
        "billing_mode": {"flexible": {"proration_discounts": "included"}, **mode}
        if mode["type"] == "flexible"
        else {"flexible": None, **mode},
        "billing_schedules": [],
        "cancel_at_period_end": asked.get("cancel_at_period_end", False),
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": asked.get("collection_method", "charge_automatically"),
        "created": account.now(),
        "currency": currency,
        "customer": customer_id,
        "days_until_due": asked.get("days_until_due"),
        "default_tax_rates": [],
        "description": asked.get("description"),
        "discounts": [],
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": {
            "object": "list",
            "data": [],
            "has_more": False,
            "url": f"/v1/subscription_items?subscription={subscription_id}",
        },
        "livemode": False,
        "metadata": merge_metadata({}, asked.get("metadata")),
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "start_date": start,
        "status": "active",
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    }


def _check_items(prices: list[Json]) -> None:
    if not 1 <= len(prices) <= ITEMS_MAX:
        raise invalid(f"A subscription has 1 to {ITEMS_MAX} items.", param="items", is_stored=False)
    if any(price["recurring"] is None for price in prices):
        raise invalid(
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.",
            param="items",
        )
    if len({price["currency"] for price in prices}) > 1:
        raise invalid("All prices on a subscription must have the same currency.", param="items")
    if len({(price["recurring"]["interval"], price["recurring"]["interval_count"]) for price in prices}) > 1:
        raise invalid("The double models one billing interval per subscription.", param="items")
    if len({price["id"] for price in prices}) < len(prices):
        raise invalid("A price can be used by one item of a subscription only.", param="items")


def _anchor(asked: Json, start: int, now: int) -> int:
    """The instant from which periods are counted."""
    if "billing_cycle_anchor" in asked and "billing_cycle_anchor_config" in asked:
        raise invalid(
            "`billing_cycle_anchor` and `billing_cycle_anchor_config` are mutually exclusive.",
            param="billing_cycle_anchor",
            is_stored=False,
        )
    if "billing_cycle_anchor" in asked:
        anchor: int = asked["billing_cycle_anchor"]
        if anchor < now:
            raise invalid("`billing_cycle_anchor` must be in the future.", param="billing_cycle_anchor")
        return anchor
    config = _anchor_config(asked)
    return start if config is None else _next_occurrence(config, now)


def _anchor_config(asked: Json) -> Json | None:
    config = asked.get("billing_cycle_anchor_config")
    if config is None:
        return None
    return {name: config.get(name) for name in ("day_of_month", "hour", "minute", "month", "second")}


def _next_occurrence(config: Json, now: int) -> int:
    """The next instant on the day of month at the time of day; parts left out are those of now (assumed)."""
    moment = datetime.fromtimestamp(now, UTC)
    clock = {
        name: getattr(moment, name) if config[name] is None else config[name] for name in ("hour", "minute", "second")
    }
    for months_ahead in range(13):
        year, month0 = divmod(moment.year * 12 + moment.month - 1 + months_ahead, 12)
        if config["month"] not in (None, month0 + 1):
            continue
        day = min(config["day_of_month"], month_days(year, month0 + 1))
        instant = int(datetime(year, month0 + 1, day, tzinfo=UTC, **clock).timestamp())
        if instant > now:
            return instant
    raise AssertionError(f"no month has {config}")


def _new_item(account: Account, subscription: Json, price: Json, asked: Json, start: int, end: int) -> Json:
    is_metered = price["recurring"]["usage_type"] == "metered"
    if is_metered and "quantity" in asked:
        raise invalid("`quantity` is not allowed for a metered price.", param="items", is_stored=False)
    item: Json = {
        "id": account.new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": account.now(),
        "current_period_end": end,
        "current_period_start": start,
        "discounts": [],
        "metadata": merge_metadata({}, asked.get("metadata")),
        "price": price,
        "subscription": subscription["id"],
        "tax_rates": [],
    }
    if not is_metered:
        item["quantity"] = asked.get("quantity", 1)
    account.segments[item["id"]] = Segment(item["id"], price, start)
    return account.add(item)


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/subscriptions/{id}"""
    return account.get("subscription", call.id)


def listed(account: Account, call: Call) -> Json:
    """GET /v1/subscriptions; cancelled ones only when asked for."""
    asked = call.parameters
    status = asked.get("status")

    def is_wanted(each: Json) -> bool:
        if status is None:
            is_status = each["status"] != "canceled"
        else:
            is_status = status == "all" or each["status"] == status or (status == "ended" and each["status"] in ENDED)
        prices = {item["price"]["id"] for item in each["items"]["data"]}
        return (
            is_status
            and asked.get("customer") in (None, each["customer"])
            and ("price" not in asked or asked["price"] in prices)
        )

    return page(call, filter(is_wanted, newest_first(account, "subscription", call)))


def change(account: Account, call: Call) -> Json:
    """POST /v1/subscriptions/{id}: fields, and items by id (price, deletion) or without (a new one)."""
    subscription = account.get("subscription", call.id)
    if subscription["status"] in ENDED:
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")
    before = copy.deepcopy(subscription["items"])
    is_billed = call.parameters.get("proration_behavior") != "none"
    for asked in call.parameters.get("items", []):
        _change_item(account, subscription, asked, is_billed=is_billed)
    previous = update(subscription, call, FIELDS)
    if before != subscription["items"]:
        previous["items"] = before
    if "cancel_at_period_end" in previous:
        is_ending = subscription["cancel_at_period_end"]
        period_end = subscription["items"]["data"][0]["current_period_end"]
        subscription["cancel_at"] = period_end if is_ending else None
        subscription["canceled_at"] = account.now() if is_ending else None
        subscription["cancellation_details"]["reason"] = "cancellation_requested" if is_ending else None
    if previous:
        account.emit("customer.subscription.updated", subscription, previous)
    return subscription


def _change_item(account: Account, subscription: Json, asked: Json, *, is_billed: bool) -> Json | None:
    """Adds, changes or deletes one item; gives the item that remains.

    Without `is_billed` (proration_behavior=none) the usage at the price that ends is not invoiced.
    """
    items = subscription["items"]["data"]
    if "id" not in asked:
        price = account.get("price", asked.get("price", ""), param="items")
        _check_items([*(each["price"] for each in items), price])
        added = _new_item(account, subscription, price, asked, account.now(), items[0]["current_period_end"])
        items.append(added)
        return added
    item: Json | None = next((each for each in items if each["id"] == asked["id"]), None)
    if item is None:
        raise invalid(f"No such subscription_item: '{asked['id']}'", code="resource_missing", param="items")
    if asked.get("deleted"):
        if len(items) == 1:
            raise invalid("A subscription must have at least one active plan.", param="items")
        _close_segment(account, subscription, item, is_dropped=not is_billed or bool(asked.get("clear_usage")))
        items.remove(item)
        account.remove("subscription_item", item["id"])
        return None
    if asked.get("price") not in (None, item["price"]["id"]):
        price = account.get("price", asked["price"], param="items")
        _check_items([*(each["price"] for each in items if each is not item), price])
        _close_segment(account, subscription, item, is_dropped=not is_billed)
        account.segments[item["id"]] = Segment(item["id"], price, account.now())
        item["price"] = price
    if "quantity" in asked:
        item["quantity"] = asked["quantity"]
    if "metadata" in asked:
        item["metadata"] = merge_metadata(item["metadata"], asked["metadata"])
    return item


def _close_segment(account: Account, subscription: Json, item: Json, *, is_dropped: bool) -> None:
    """Usage at the price that ends now: still billed in flexible mode, lost in classic."""
    segment = account.segments.pop(item["id"])
    is_metered = segment.price["recurring"]["usage_type"] == "metered"
    if not is_metered or is_dropped or subscription["billing_mode"]["type"] != "flexible":
        return
    start = max(segment.start, item["current_period_start"])
    closed = Segment(item["id"], segment.price, start, account.now())
    account.closed_segments.setdefault(subscription["id"], []).append(closed)


def cancel(account: Account, call: Call) -> Json:
    """DELETE /v1/subscriptions/{id}: at once; open usage is billed only with `invoice_now`."""
    subscription = account.get("subscription", call.id)
    if subscription["status"] in ENDED:
        raise invalid(f"No such subscription: '{call.id}'", code="resource_missing", param="id", status=404)
    if call.parameters.get("invoice_now"):
        billing_cycle.invoice_open_usage(account, subscription)
    end(account, subscription, reason="cancellation_requested")
    return subscription


def end(account: Account, subscription: Json, *, reason: str) -> None:
    """The subscription is over: nothing is invoiced for it any more."""
    subscription["status"] = "canceled"
    subscription["canceled_at"] = subscription["canceled_at"] or account.now()
    subscription["ended_at"] = account.now()
    subscription["cancellation_details"]["reason"] = reason
    account.emit("customer.subscription.deleted", subscription)


def set_status(account: Account, subscription: Json, status: str) -> None:
    """Changes the status and tells the endpoints; `canceled` ends it."""
    if subscription["status"] == status:
        return
    if status == "canceled":
        end(account, subscription, reason="payment_failed")
        return
    previous = {"status": subscription["status"]}
    subscription["status"] = status
    account.emit("customer.subscription.updated", subscription, previous)


def line_sources(account: Account, subscription: Json, until: int) -> list[LineSource]:
    """What is to be invoiced for usage up to an instant: segments that ended, then present prices."""
    sources = [
        LineSource(each.price, each.item, each.start, each.end or until)
        for each in account.closed_segments.get(subscription["id"], [])
    ]
    for item in subscription["items"]["data"]:
        segment = account.segments[item["id"]]
        if segment.price["recurring"]["usage_type"] == "metered":
            start = max(segment.start, item["current_period_start"])
            sources.append(LineSource(segment.price, item["id"], start, until))
    return sources


def _item_subscription(account: Account, item_id: str) -> Json:
    item = account.get("subscription_item", item_id)
    return account.get("subscription", item["subscription"])


def create_item(account: Account, call: Call) -> Json:
    """POST /v1/subscription_items"""
    subscription = account.get("subscription", call.parameters["subscription"], param="subscription")
    return _item_edit(account, subscription, {k: v for k, v in call.parameters.items() if k != "subscription"})


def retrieve_item(account: Account, call: Call) -> Json:
    """GET /v1/subscription_items/{item}"""
    return account.get("subscription_item", call.id)


def change_item(account: Account, call: Call) -> Json:
    """POST /v1/subscription_items/{item}"""
    return _item_edit(account, _item_subscription(account, call.id), {**call.parameters, "id": call.id})


def delete_item(account: Account, call: Call) -> Json:
    """DELETE /v1/subscription_items/{item}"""
    subscription = _item_subscription(account, call.id)
    return _item_edit(account, subscription, {**call.parameters, "id": call.id, "deleted": True})


def _item_edit(account: Account, subscription: Json, asked: Json) -> Json:
    """Changes one item and tells the endpoints; gives the item, or the stub of a deleted one."""
    before = copy.deepcopy(subscription["items"])
    is_billed = asked.get("proration_behavior") != "none"
    item = _change_item(account, subscription, asked, is_billed=is_billed)
    account.emit("customer.subscription.updated", subscription, {"items": before})
    return account.deleted[asked["id"]] if item is None else item


def list_items(account: Account, call: Call) -> Json:
    """GET /v1/subscription_items of one subscription."""
    subscription = account.get("subscription", call.parameters["subscription"], param="subscription")
    return page(call, subscription["items"]["data"])


ROUTES: tuple[Route, ...] = (
    route(
        "POST",
        "/v1/subscriptions",
        create,
        FIELDS + " customer items backdate_start_date billing_cycle_anchor billing_cycle_anchor_config billing_mode"
        " proration_behavior",
    ),
    route("GET", "/v1/subscriptions", listed, "customer status price created"),
    route("GET", "/v1/subscriptions/{subscription_exposed_id}", retrieve),
    route(
        "POST",
        "/v1/subscriptions/{subscription_exposed_id}",
        change,
        FIELDS + " items proration_behavior",
    ),
    route("DELETE", "/v1/subscriptions/{subscription_exposed_id}", cancel, "invoice_now prorate"),
    route(
        "POST",
        "/v1/subscription_items",
        create_item,
        "subscription price quantity metadata proration_behavior",
    ),
    route("GET", "/v1/subscription_items", list_items, "subscription"),
    route("GET", "/v1/subscription_items/{item}", retrieve_item),
    route("POST", "/v1/subscription_items/{item}", change_item, "price quantity metadata proration_behavior"),
    route("DELETE", "/v1/subscription_items/{item}", delete_item, "clear_usage proration_behavior"),
)
