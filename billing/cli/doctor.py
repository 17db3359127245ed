"""`weir doctor`: the installation, looked at from all sides."""

import click

from billing import doctor as doctors
from billing.cli.app import Session, pass_session
from billing.cli.output import emit, listing

COLUMNS = ("check", "state", "found", "remedy")


@click.command()
@listing
@pass_session
@click.pass_context
def doctor(context: click.Context, session: Session, form: str) -> None:
    """Check configuration, database, clock, upstreams, prices, tokenizers, spool, disk, Stripe and the outbox.

    Each line says what was found, and what to do about it. Exit code 1 if anything is wrong ("fail").
    """
    results = list(doctors.examine(session.config))
    emit(form, [result._asdict() for result in results], COLUMNS)
    context.exit(1 if any(result.state == doctors.FAIL for result in results) else 0)
