"""`weir trace BATCH_ID|INVOICE_ID`: from an invoice's line to its batches, from a batch to its requests."""

from billing.cli.app import Session
from billing.cli.output import Row
from billing.clock import SECOND_US, Instant, instant_text
from billing.errors import NotFoundError
from billing.ledger import accounts, bills
from billing.ledger.outbox import Batch
from billing.money import Pico, amount_text
from billing.stripe_sync import our_prices

REQUESTS_SHOWN = 1_000
INVOICE_PREFIX = "in_"


def batch_row(session: Session, batch: Batch) -> Row:
    """Return a batch as one row, with the requests whose amounts it holds."""
    with session.database.reading() as conn:
        requests = bills.requests_in(conn, batch, REQUESTS_SHOWN)
        customer = accounts.get_customer(conn, batch.customer_id)
    return {
        **_batch(batch),
        "customer": customer.name,
        "customer_id": customer.id,
        "stripe_customer": batch.stripe_customer_id,
        "meter": batch.event_name,
        "amount": amount_text(bills.worth(batch)),
        "currency": session.config.billing.currency,
        "carry_in_pico": batch.carry_in_pico,
        "carry_pico": batch.carry_pico,
        "answer": batch.last_answer,
        "requests": [
            {
                "id": each.id,
                "finished_at": instant_text(Instant(each.finished_at)),
                "model": each.model,
                "outcome": each.outcome,
                "input_tokens": each.input_tokens,
                "output_tokens": each.output_tokens,
                "amount": amount_text(Pico(each.amount_pico)),
                "price_ref": each.price_ref,
            }
            for each in requests
        ],
    }


def invoice_row(session: Session, invoice_id: str) -> Row:
    """Return an invoice of Stripe's as one row: its lines for usage, each with the batches that it bills."""
    from billing.stripe_sync.client import connect  # noqa: PLC0415 -- the SDK's import is slow, and rarely needed

    billed = connect(session.config).payments.find_invoice(invoice_id)
    if billed is None:
        raise NotFoundError(f"Stripe has no invoice {invoice_id!r}")
    with session.database.reading() as conn:
        customer = accounts.find_by_stripe(conn, billed.stripe_customer_id)
        prices = our_prices.load(conn)
    if customer is None:
        raise NotFoundError(f"{invoice_id} is of {billed.stripe_customer_id}, who is linked to no customer")
    lines: list[Row] = []
    for line in billed.lines:
        start, end = Instant(line.period_start_s * SECOND_US), Instant(line.period_end_s * SECOND_US)
        with session.database.reading() as conn:
            is_ours = prices.is_ours(line.price_id)
            found = bills.batches_in(conn, customer.id, start, end) if is_ours else []
        found = prices.billed(line.price_id, found) if is_ours else []
        lines.append(
            {
                "text": line.text,
                "price": line.price_id,
                "period_start": instant_text(start),
                "period_end": instant_text(end),
                "units": line.units,
                "units_in_batches": sum(batch.units for batch in found),
                "batches": [_batch(batch) for batch in found],
            }
        )
    return {
        "invoice": billed.id,
        "status": billed.status,
        "customer": customer.name,
        "customer_id": customer.id,
        "currency": billed.currency,
        "lines": lines,
    }


def _batch(batch: Batch) -> Row:
    return {
        "meter_batch": batch.id,
        "window": instant_text(batch.window_start),
        "units": batch.units,
        "state": batch.state.value,
    }
