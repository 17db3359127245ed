"""`weir trace`: one request's receipt, from its tokens and unit prices to the batch that went to Stripe."""

import json

import click

from billing.cli import trace_bill
from billing.cli.app import Session, pass_session
from billing.cli.output import emit_one, listing
from billing.cli.unit_prices import fields_of
from billing.clock import HOUR_US, SECOND_US, Instant, instant_text
from billing.ledger import bills, tracing
from billing.ledger.adjustments import Note
from billing.ledger.outbox import Batch
from billing.ledger.tracing import Trace
from billing.money import Pico, amount_text

_INSTANTS = ("started_at", "first_token_at", "finished_at", "window_start")


@click.command()
@click.argument("request_id", metavar="REQUEST_ID|BATCH_ID|INVOICE_ID")
@listing
@pass_session
def trace(session: Session, request_id: str, form: str) -> None:
    """Show what is recorded of the request with this x-request-id, and why it cost what it cost.

    Back from the bill: an invoice of Stripe's (in_…) shows the batches of each line, a batch its requests.
    """
    if request_id.startswith(trace_bill.INVOICE_PREFIX):
        emit_one(form, trace_bill.invoice_row(session, request_id))
        return
    with session.database.reading() as conn:
        batch = bills.find_batch(conn, request_id)
    if batch is not None:
        emit_one(form, trace_bill.batch_row(session, batch))
        return
    with session.database.reading() as conn:
        found = tracing.load(conn, request_id)
    emit_one(form, row(found))


def row(found: Trace) -> dict[str, object]:
    """Return a trace as one row: the event's columns with amounts and instants as texts, then its prices."""
    quote, batch = found.quote, found.batches[0] if found.batches else None
    fields: dict[str, object] = {**found.event._asdict(), "customer": found.customer}
    for name in _INSTANTS:
        instant = fields[name]
        fields[name] = instant_text(Instant(instant)) if isinstance(instant, int) else None
    del fields["cost_pico"], fields["amount_pico"]
    tags = found.event.tags
    net = found.event.amount_pico + sum(note.amount for note in found.adjustments)
    return {
        **fields,
        "tags": None if tags is None else json.loads(tags),
        "cost": amount_text(Pico(found.event.cost_pico)),
        "amount": amount_text(Pico(found.event.amount_pico)),
        "currency": quote.currency,
        "unit_prices": fields_of(quote.price),
        "unit_costs": fields_of(quote.cost),
        "margin": quote.margin,
        "margin_rule_id": quote.margin_rule_id,
        "cost_rate_id": quote.cost_rate_id,
        "net_amount": amount_text(Pico(net)),
        "adjustments": [_adjustment(note) for note in found.adjustments],
        "reason": found.reason,
        "meter_batch": None if batch is None else batch.id,
        "meter_batch_state": None if batch is None else batch.state.value,
        **billing(batch),
        "meter_batches": [
            {"meter_batch": each.id, "meter": each.event_name, "state": each.state.value, **billing(each)}
            for each in found.batches
        ],
    }


def billing(batch: Batch | None) -> dict[str, object]:
    """Where it is billed: the time and the identifier of the batch's meter event, and whether that is a later hour."""
    if batch is None or batch.units == 0:
        return {"meter_event": None, "billed_at": None, "is_carried_forward": False}
    billed_at = Instant(batch.timestamp_s * SECOND_US)
    is_carried = batch.timestamp_s * SECOND_US >= batch.window_start + HOUR_US
    fields: dict[str, object] = {"meter_event": batch.identifier, "billed_at": instant_text(billed_at)}
    return fields | {"is_carried_forward": is_carried}


def _adjustment(note: Note) -> dict[str, object]:
    return {
        "id": note.event_id,
        "at": instant_text(note.at),
        "change": note.change,
        "amount": amount_text(note.amount),
        "reason": note.reason,
    }
