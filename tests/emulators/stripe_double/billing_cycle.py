"""What time does to subscriptions: periods end, drafts appear, late usage still counts, drafts are finalized.

Documented: at a period's end a draft invoice is made (`subscription_cycle`) and `invoice.created` is sent;
usage with timestamps in the old period counts until the draft is finalized, an hour later by default; while
`invoice.created` is not acknowledged finalization waits, for at most 72 hours; usage after that is on no
invoice. A subscription that is `unpaid` keeps its invoices as drafts.
"""

from __future__ import annotations

from . import invoices, subscriptions
from .account import Account, Json, LineSource, Segment
from .clock import DAY_S, next_boundary

UPCOMING_S = 7 * DAY_S
"""How long before a period's end `invoice.upcoming` is sent (a Dashboard setting; assumed)."""


def start(account: Account, subscription: Json) -> None:
    """The first invoice of a new subscription and the end of its first period."""
    now = account.now()
    item = subscription["items"]["data"][0]
    if account.policy.is_first_invoice_made:
        sources = licensed_sources(subscription)
        if subscription["start_date"] < now and subscription["billing_mode"]["type"] == "flexible":
            sources += subscriptions.line_sources(account, subscription, now)
        else:
            sources += [
                LineSource(each.price, each.item, now, now)
                for each in subscriptions.line_sources(account, subscription, now)
            ]
        invoice = invoices.draft(account, subscription, sources, "subscription_create", subscription["start_date"], now)
        invoices.finalize(account, invoice)
        mark_billed(account, subscription, now)
    await_period_end(account, subscription, item["current_period_end"])


def mark_billed(account: Account, subscription: Json, until: int) -> None:
    """What was invoiced up to an instant is not invoiced again."""
    is_backdated = subscription["start_date"] < until
    if not is_backdated or subscription["billing_mode"]["type"] != "flexible":
        return
    for item in subscription["items"]["data"]:
        account.segments[item["id"]] = Segment(item["id"], item["price"], until)


def licensed_sources(subscription: Json) -> list[LineSource]:
    """Licensed items, billed in advance for the period that begins."""
    return [
        LineSource(
            item["price"],
            item["id"],
            item["current_period_start"],
            item["current_period_end"],
            quantity=item["quantity"],
        )
        for item in subscription["items"]["data"]
        if item["price"]["recurring"]["usage_type"] == "licensed"
    ]


def await_period_end(account: Account, subscription: Json, period_end: int) -> None:
    """Schedules the end of the current period and the notice before it."""
    if period_end - UPCOMING_S > account.now():
        account.schedule(period_end - UPCOMING_S, lambda: _announce(account, subscription, period_end))
    account.schedule(period_end, lambda: end_period(account, subscription, period_end))


def _is_current(subscription: Json, period_end: int) -> bool:
    is_same = subscription["items"]["data"][0]["current_period_end"] == period_end
    return is_same and subscription["status"] not in subscriptions.ENDED


def _announce(account: Account, subscription: Json, period_end: int) -> None:
    if _is_current(subscription, period_end):
        account.emit("invoice.upcoming", invoices.preview(account, subscription))


def end_period(account: Account, subscription: Json, period_end: int) -> None:
    """The old period becomes a draft invoice; the new one begins, unless the subscription was to end."""
    if not _is_current(subscription, period_end):
        return
    items = subscription["items"]["data"]
    period_start = items[0]["current_period_start"]
    sources = subscriptions.line_sources(account, subscription, period_end)
    account.closed_segments.pop(subscription["id"], None)
    if subscription["cancel_at_period_end"]:
        _draft_and_await(account, subscription, sources, period_start, period_end)
        subscriptions.end(account, subscription, reason="cancellation_requested")
        return
    recurring = items[0]["price"]["recurring"]
    following = next_boundary(
        subscription["billing_cycle_anchor"], recurring["interval"], recurring["interval_count"], period_end
    )
    previous = {"items": {**subscription["items"], "data": [dict(item) for item in items]}}
    for item in items:
        item["current_period_start"], item["current_period_end"] = period_end, following
    sources += licensed_sources(subscription)
    previous["latest_invoice"] = subscription["latest_invoice"]
    _draft_and_await(account, subscription, sources, period_start, period_end)
    account.emit("customer.subscription.updated", subscription, previous)
    await_period_end(account, subscription, following)


def _draft_and_await(account: Account, subscription: Json, sources: list[LineSource], start_: int, end_: int) -> None:
    invoice = invoices.draft(account, subscription, sources, "subscription_cycle", start_, end_)
    if invoice["auto_advance"]:
        await_finalization(account, invoice)


def await_finalization(account: Account, invoice: Json) -> None:
    """Schedules the automatic finalization of a draft."""
    at: int = invoice["automatically_finalizes_at"]
    account.schedule(at, lambda: _finalize_when_acknowledged(account, invoice, at))


def _finalize_when_acknowledged(account: Account, invoice: Json, at: int) -> None:
    if invoice["status"] != "draft" or invoice["automatically_finalizes_at"] != at:
        return
    created_event = next(
        (
            event["id"]
            for event in account.all("event")
            if event["type"] == "invoice.created" and event["data"]["object"]["id"] == invoice["id"]
        ),
        None,
    )
    latest = invoice["created"] + account.policy.finalization_delay_max_s
    if at < latest and created_event is not None and not account.is_acknowledged(created_event):
        invoice["automatically_finalizes_at"] = min(at + 3_600, latest)
        await_finalization(account, invoice)
        return
    invoices.finalize(account, invoice)


def invoice_open_usage(account: Account, subscription: Json) -> Json:
    """`invoice_now`: what was used in the running period, invoiced and charged at once."""
    item = subscription["items"]["data"][0]
    sources = subscriptions.line_sources(account, subscription, account.now())
    account.closed_segments.pop(subscription["id"], None)
    invoice = invoices.draft(
        account, subscription, sources, "subscription_update", item["current_period_start"], account.now()
    )
    return invoices.finalize(account, invoice)
