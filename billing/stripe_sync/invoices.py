"""Finalized invoices against the ledger: each metered line beside what was sent for its period, and what it tells us.

Invariant: a line proves what was billed. What was sent for its period around or after the finalization, and makes up
exactly what the line lacks, is on no invoice (`late`): `--repair` gives it a fresh identifier in the period that is
open, and its old one stays in the meter's closed hour, where nothing bills it. All other differences are told only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from billing.clock import SECOND_US, Instant
from billing.errors import StripeError
from billing.ledger import comparisons, periods, repairs
from billing.ledger.comparisons import InvoiceCheck
from billing.ledger.database import Connection, Database
from billing.ledger.outbox import Batch
from billing.ledger.periods import Boundary
from billing.ledger.repairs import Kind as RepairKind
from billing.stripe_sync import differences, our_prices
from billing.stripe_sync.differences import EXPLAINED, Ghost
from billing.stripe_sync.our_prices import OurPrices
from billing.stripe_sync.port import MeteredInvoice, MeteredLine, StripePort

_DRAFT = "draft"
LOOK_BACK_US = 3 * 86_400 * SECOND_US
"""An invoice is made at its period's end; this much before it is looked at, too."""


def learn(database: Database, port: StripePort, late: Iterable[Boundary]) -> set[str]:
    """Ask for each customer whether its last period is invoiced for good, and record it; return who stays unknown.

    Usage of theirs from before the boundary has to wait: nobody knows to which period it can still go.
    """
    unknown: set[str] = set()
    for boundary in late:
        try:
            found = port.metered_invoices(boundary.stripe_customer_id, (boundary.at - LOOK_BACK_US) // SECOND_US)
        except StripeError:
            unknown.add(boundary.customer_id)
            continue
        with database.writing() as conn:
            _record_end(conn, boundary.customer_id, found, our_prices.load(conn))
    return unknown


def check(
    database: Database, port: StripePort, boundary: Boundary, now: Instant
) -> list[tuple[InvoiceCheck, tuple[Batch, ...]]]:
    """Compare the lines of a customer's finalized invoices since the boundary's period; record what was found.

    Each comes with the batches that are on no invoice for being late. Raises StripeError.
    """
    found = port.metered_invoices(boundary.stripe_customer_id, (boundary.at - LOOK_BACK_US) // SECOND_US)
    results = []
    with database.writing() as conn:
        prices = our_prices.load(conn)
        _record_end(conn, boundary.customer_id, found, prices)
        for invoice in found:
            for line in _lines(invoice, prices):
                ids = [boundary.stripe_customer_id]
                sent = repairs.between(conn, ids, line.period_start_s, line.period_end_s)
                given_up = repairs.at_stripe(conn, ids, line.period_start_s, line.period_end_s)
                of_repairs = repairs.find(conn, {each.batch_id for each in given_up})
                ours = {batch.id for batch in prices.billed(line.price_id, of_repairs.values())}
                ghosts = [Ghost(each, of_repairs[each.batch_id]) for each in given_up if each.batch_id in ours]
                batches = prices.billed(line.price_id, sent)
                check, late = compare(boundary.customer_id, invoice, line, batches, ghosts, now)
                results.append((replace(check, meter=prices.meter(line.price_id)), late))
        comparisons.write_invoices(conn, [result[0] for result in results])
    return results


def compare(
    customer_id: str,
    invoice: MeteredInvoice,
    line: MeteredLine,
    batches: Sequence[Batch],
    ghosts: Sequence[Ghost],
    now: Instant,
) -> tuple[InvoiceCheck, tuple[Batch, ...]]:
    """Say what a line comes to, and which batches are on no invoice. Pure."""
    assert invoice.finalized_at_s is not None, "a draft is not compared: its quantity still grows"
    start = Instant(line.period_start_s * SECOND_US)
    finalized_at = Instant(invoice.finalized_at_s * SECOND_US)
    finding = differences.explain_line(start, batches, ghosts, line.units, finalized_at)
    check = InvoiceCheck(
        invoice_id=invoice.id,
        period_start=start,
        period_end=Instant(line.period_end_s * SECOND_US),
        customer_id=customer_id,
        finalized_at=finalized_at,
        invoiced_units=line.units,
        ledger_units=finding.ledger_units,
        kind=str(finding.kind),
        explanation=finding.explanation,
        is_explained=finding.kind in EXPLAINED,
        checked_at=now,
    )
    return check, tuple(step.batch for step in finding.steps)


def carry_forward(database: Database, batches: Iterable[Batch], actor: str, now: Instant) -> int:
    """Give batches that are on no invoice a fresh identifier in the open period; return how many will be sent."""
    count = 0
    for batch in batches:
        with database.writing() as conn:
            until = periods.billed_until(conn, [batch.customer_id]).get(batch.customer_id)
            if until is not None:
                reason = "counted after its invoice was finalized; carried forward to the next one"
                count += repairs.renew(
                    conn, batch, RepairKind.CARRY, reason, actor, now, timestamp_s=until // SECOND_US
                )
    return count


def _lines(invoice: MeteredInvoice, prices: OurPrices) -> list[MeteredLine]:
    """Return the lines of a finalized invoice that bill usage.

    One without a span bills none, and neither does one whose period was not over yet: a trial's, which begins with an
    invoice. Taken for a billed period, it would push all usage behind its end.
    """
    at_s = invoice.finalized_at_s
    if at_s is None or invoice.status == _DRAFT:
        return []
    ours = (line for line in invoice.lines if prices.is_ours(line.price_id))
    return [line for line in ours if line.period_start_s < line.period_end_s <= at_s]


def _record_end(conn: Connection, customer_id: str, found: Iterable[MeteredInvoice], prices: OurPrices) -> None:
    ends = [line.period_end_s for invoice in found for line in _lines(invoice, prices)]
    if ends:
        periods.set_billed_until(conn, customer_id, Instant(max(ends) * SECOND_US))
