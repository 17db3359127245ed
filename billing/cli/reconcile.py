"""`weir stripe reconcile`: Stripe's sums beside the ledger's, why they differ, and the mending of what is proven."""

import click

from billing import clock
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import Instant, instant_text, parse_instant
from billing.ledger import accounts
from billing.ledger.comparisons import InvoiceCheck
from billing.stripe_sync import push, turn
from billing.stripe_sync import reconcile as reconciling
from billing.stripe_sync.client import connect
from billing.stripe_sync.findings import Found, Report

HOUR_COLUMNS = ("customer", "hour", "ledger_units", "stripe_units", "difference", "kind", "explanation")
INVOICE_COLUMNS = ("customer_id", "invoice", "ledger_units", "invoiced_units", "difference", "kind", "explanation")
UNREADABLE_COLUMNS = ("customer", "stripe_customer", "error")


@click.command()
@click.option("--since", "since_text", metavar="INSTANT", help="From this hour on.  [default: a week, or what is open]")
@click.option("--until", "until_text", metavar="INSTANT", help="Up to this hour.  [default: now]")
@click.option("--customer", metavar="CUSTOMER", help="Only this customer, by id or name.")
@click.option("--repair", "is_repairing", is_flag=True, help="Mend what is proven: send what is lost, cancel doubles.")
@listing
@pass_session
def reconcile(
    session: Session,
    since_text: str | None,
    until_text: str | None,
    customer: str | None,
    *,
    is_repairing: bool,
    form: str,
) -> int:
    """Compare Stripe's meter summaries with what was sent, hour by hour; exit 1 while anything is unexplained.

    \b
    match           both sums are equal: the batches become confirmed
    in_transit      sent within the hour, or not yet: Stripe counts with a delay
    rejected, held  Stripe refused it, or a person has to decide: `weir stripe status`
    carried         billed on a later invoice, because its own was closed
    lost            Stripe does not count batches that were sent: --repair sends them again
    doubled         Stripe counts what was sent again twice: --repair takes one back, within 24 h
    unknown_sender  Stripe counts more than Weir ever sent
    unclear         no choice of batches makes up the difference
    """  # noqa: D301 (click's mark for lines that are not to be wrapped)
    now = session.now
    since = None if since_text is None else parse_instant(since_text, now)
    until = None if until_text is None else parse_instant(until_text, now)
    with session.database.reading() as conn:
        customer_id = None if customer is None else accounts.find_customer(conn, customer).id
    port = connect(session.config)
    reconciler = reconciling.reconciler(session.config, session.database, port, clock.now, actor=session.actor)
    pusher = push.pusher(session.config, session.database, port, clock.now)
    with turn.waited_for(session.database, turn.RECONCILE):
        report = reconciling.run(reconciler, pusher, since, until, customer_id, is_repairing=is_repairing)
    _show(form, report)
    return _outcome(report)


def _show(form: str, report: Report) -> None:
    hours = [_hour(each) for each in report.found]
    invoices = [_invoice(check) for check in report.invoices]
    unreadable: list[Row] = [
        {"customer": subject.name, "stripe_customer": subject.stripe_customer_id, "error": error}
        for subject, error in report.unreadable
    ]
    if form == "json":
        fields: dict[str, object] = {
            "since": instant_text(report.since),
            "until": instant_text(report.until),
            "customers": report.subjects,
            "kinds": dict(report.kinds),
            "hours": hours,
            "invoices": invoices,
            "unreadable": unreadable,
            "resent": report.resent,
            "taken_back": report.taken_back,
            "left_out": report.left_out,
        }
        emit_one(form, fields)
        return
    if form == "csv":
        emit(form, hours, HOUR_COLUMNS)
        return
    summary: dict[str, object] = {"from": instant_text(report.since), "to": instant_text(report.until)}
    summary |= {"customers": report.subjects, "sent again": report.resent, "taken back": report.taken_back}
    emit_one(form, summary | dict(report.kinds), title="Stripe against the ledger")
    differing: list[Row] = [row for row in hours if row["kind"] != "match"]
    if differing:
        emit(form, differing, HOUR_COLUMNS, title="hours that differ")
    if invoices:
        emit(form, invoices, INVOICE_COLUMNS, title="finalized invoices")
    if unreadable:
        emit(form, unreadable, UNREADABLE_COLUMNS, title="not told by Stripe")


def _outcome(report: Report) -> int:
    if report.is_explained:
        return 0
    click.echo(f"weir: {report.unexplained} differences are unexplained; --repair mends what is proven", err=True)
    return 1


def _hour(found: Found) -> dict[str, object]:
    finding = found.finding
    return {
        "customer": found.subject.name,
        "customer_id": found.subject.customer_id,
        "stripe_customer": found.subject.stripe_customer_id,
        "event_name": found.event_name,
        "hour": instant_text(finding.hour_start),
        "windows": list(found.windows),
        "ledger_units": finding.ledger_units,
        "stripe_units": finding.stripe_units,
        "difference": finding.difference,
        "kind": str(finding.kind),
        "explanation": finding.explanation,
        "is_explained": finding.is_explained,
        "matched_before": None if found.was_matched is None else list(found.was_matched),
    }


def _invoice(check: InvoiceCheck) -> dict[str, object]:
    return {
        "invoice": check.invoice_id,
        "customer_id": check.customer_id,
        "period_start": instant_text(check.period_start),
        "period_end": instant_text(check.period_end),
        "finalized_at": instant_text(Instant(check.finalized_at)),
        "ledger_units": check.ledger_units,
        "invoiced_units": check.invoiced_units,
        "difference": check.invoiced_units - check.ledger_units,
        "kind": check.kind,
        "explanation": check.explanation,
        "is_explained": check.is_explained,
    }
