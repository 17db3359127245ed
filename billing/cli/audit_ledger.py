"""`weir audit ledger`: proof that the books agree, or every row that breaks them."""

import json

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import emit
from billing.ledger import proof
from billing.money import amount_number, format_amount

COLUMNS = ("customer", "events", "rollups", "credit", "units", "carry", "unassigned", "currency")


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@pass_session
@click.pass_context
def ledger(context: click.Context, session: Session, *, is_json: bool) -> None:
    """Prove that Σ events = Σ rollups = Σ units of batches + carry + credit + what no batch holds yet.

    For every customer, to the picounit; that amounts are tokens × prices; and that batches, credit and leases form
    unbroken chains. Every row that breaks one of these is named; the exit code is then 1. It reads all events, in one
    snapshot, and changes nothing.
    """
    with session.database.reading() as conn:
        findings = list(proof.run(conn))
        totals = proof.totals(conn)
    currency = session.config.billing.currency
    rows = [
        {
            "customer": each.customer_id,
            "events": amount_number(each.events),
            "rollups": amount_number(each.rollups),
            "credit": amount_number(each.credit),
            "units": each.units,
            "carry": amount_number(each.carry),
            "unassigned": amount_number(each.unassigned),
            "currency": currency,
        }
        for each in totals
    ]
    if is_json:
        found = [finding._asdict() for finding in findings]
        click.echo(json.dumps({"audits": len(proof.AUDITS), "findings": found, "customers": rows}, indent=2))
    else:
        emit("table", rows, COLUMNS)
        for finding in findings:
            click.echo(f"{finding.audit}: {finding.row}: {finding.fault}")
        total = format_amount(proof.total(totals), currency)
        verdict = f"{len(findings)} rows break them" if findings else "all hold"
        click.echo(f"{len(proof.AUDITS)} audits of {len(rows)} customers' books, {total}: {verdict}")
    context.exit(1 if findings else 0)
