"""`weir audit`: whether what is booked is true. `tokens`: the servers' counts against ours; `ledger`: the books."""

import click

from billing.cli.app import Session, pass_session
from billing.cli.audit_ledger import ledger
from billing.cli.output import emit, listing
from billing.clock import parse_instant
from billing.ledger import token_audits
from billing.ledger.token_audits import Found, Source
from billing.tokens.drift import Verdict

COLUMNS = (
    *("model", "upstream", "kind", "version", "samples"),
    *("input_reported", "input_counted", "input_drift", "input_verdict"),
    *("output_reported", "output_counted", "output_drift", "output_verdict", "anomalies"),
)
_BAD = (Verdict.OVER, Verdict.UNDER)


@click.group()
def audit() -> None:
    """Whether what is booked is true."""


audit.add_command(ledger)


@audit.command()
@click.option("--since", metavar="INSTANT", help="From this instant on, such as -7d.  [default: all]")
@click.option("--until", metavar="INSTANT", help="Up to this instant.  [default: all]")
@click.option("--model", metavar="MODEL", help="Only this model's.")
@listing
@pass_session
@click.pass_context
def tokens(
    context: click.Context, session: Session, since: str | None, until: str | None, model: str | None, form: str
) -> None:
    """Compare the tokens that model servers report with our own count of a sample of live traffic.

    The share is [audit] sample (1%); texts are dropped as soon as they are counted. Samples are kept by whole UTC days.
    A verdict is "exact", "within slack" (what templates, markup and stop texts may hide), "over-reports",
    "under-reports" or "not compared". Anomalies are usage that could not be true, such as input_implausible.

    Exit code 1 if a server over- or under-reports or there is an anomaly, 0 otherwise.
    """
    first, last = (None if text is None else parse_instant(text, session.now) for text in (since, until))
    with session.database.reading() as conn:
        found = token_audits.load(conn, first, last, model)
        anomalies = token_audits.anomalies(conn, first, last, model)
    rows = rows_of(found, anomalies)
    emit(form, rows, COLUMNS, title="token counts of servers against ours")
    if any(row["anomalies"] or row["input_verdict"] in _BAD or row["output_verdict"] in _BAD for row in rows):
        context.exit(1)


def rows_of(found: dict[Source, Found], anomalies: dict[tuple[str, str], dict[str, int]]) -> list[dict[str, object]]:
    """Return a row for each source; anomalies stand in the last one of their model and upstream, or in their own."""
    last = {(source.model, source.upstream): source for source in found}
    rows = [
        _row(source, sums, anomalies.get((source.model, source.upstream), {}) if source in last.values() else {})
        for source, sums in found.items()
    ]
    unsampled = [key for key in anomalies if key not in last]
    return rows + [_row(Source(*key, "", ""), Found(), anomalies[key]) for key in unsampled]


def _row(source: Source, found: Found, anomalies: dict[str, int]) -> dict[str, object]:
    row: dict[str, object] = {
        "model": source.model,
        "upstream": source.upstream,
        "kind": source.kind or None,
        "version": source.version or None,
        "samples": max(found.input.samples, found.output.samples),
    }
    for name, side in (("input", found.input), ("output", found.output)):
        row |= {
            f"{name}_samples": side.samples,
            f"{name}_reported": side.reported,
            f"{name}_counted": side.counted,
            f"{name}_drift": side.drift,
            f"{name}_slack": side.slack,
            f"{name}_worst": [side.worst_under, side.worst_over],
            f"{name}_outliers": side.over + side.under,
            f"{name}_verdict": side.verdict.value,
        }
    return {**row, "anomalies": anomalies}
