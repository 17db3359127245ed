"""`weir stripe`: setup, what was sent and what was not, and Stripe's events."""

from collections.abc import Iterable, Mapping

import click

from billing import clock
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.reconcile import reconcile
from billing.clock import instant_text, parse_instant
from billing.errors import NotFoundError, StripeError, UsageError
from billing.ledger import inbox, outbox, standings, stripe_objects, token_meters, versions
from billing.ledger.outbox import Batch
from billing.ledger.stripe_objects import Kind
from billing.money import amount_text
from billing.stripe_sync import drift as drift_
from billing.stripe_sync import push, release, setup, token_setup, turn
from billing.stripe_sync.client import connect
from billing.stripe_sync.push import Pusher, Sent
from billing.stripe_sync.setup import Step

ATTENTION_ROWS_MAX = 100
EVENT_ROWS_MAX = 100

SETUP_COLUMNS = ("kind", "action", "stripe_id", "meter", "detail", "drift")
DRIFT_COLUMNS = ("kind", "stripe_id", "fault", "remedy")
METER_COLUMNS = ("meter", "units_sent", "units_unsent")
SENT_COLUMNS = ("batch", "customer", "window", "units", "state", "answer")
CUSTOMER_COLUMNS = (
    "customer",
    "stripe_customer",
    "units_sent",
    "units_unsent",
    "carry_pico",
    "unassigned",
    "currency",
)
EVENT_COLUMNS = ("id", "type", "state", "stripe_customer", "received_at", "attempts", "last_error")
NEEDS_A_PERSON = (outbox.State.REJECTED, outbox.State.HELD, outbox.State.UNCERTAIN)


@click.group()
def stripe() -> None:
    """Usage to Stripe, and Stripe's decisions back."""


@stripe.command("setup")
@click.option("--plan", "is_plan", is_flag=True, help="Show what would be done, and do nothing.")
@listing
@pass_session
def setup_(session: Session, *, is_plan: bool, form: str) -> None:
    """Create or adopt the meter, the product and the price; run twice, it changes nothing.

    With stripe.mode = "tokens" also those of each kind of token of each model, at the prices that hold now.
    """
    config, port = session.config, connect(session.config)
    with session.database.reading() as conn:
        known = stripe_objects.known(conn)
        settings = config.billing
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        of_tokens = token_meters.ids(conn)
    if is_plan:
        steps = setup.preview(setup.wanted(config), port)
    else:
        steps = setup.run(config, session.database, port, session.now, session.actor)
    rows = _setup_rows(config.stripe.meter_event_name, steps, known)
    if config.stripe.mode == "tokens":
        wants = token_setup.of_card(config, book, session.now)
        made = (
            token_setup.preview(wants, port)
            if is_plan
            else token_setup.ensure(session.database, port, wants, session.now, session.actor)
        )
        for each, of_rate in made:
            name = each.want.event_name
            rows += _setup_rows(name, of_rate, of_tokens.get((name, each.rate.unit_pico), {}))
    emit(form, rows, SETUP_COLUMNS, title="planned" if is_plan else "at Stripe")


@stripe.command("push")
@click.option("--now", "is_now", is_flag=True, help="Close running hours too, and do not wait for due retries.")
@click.option(
    "--retry-rejected",
    "--rejected",
    "is_rejected",
    is_flag=True,
    help="Send again what Stripe refused, its cause being mended.",
)
@click.option(
    "--release", "batch_id", metavar="BATCH", help="Send this batch, held or refused, whatever is not proven."
)
@click.option("--yes", "is_sure", is_flag=True, help="With --release: do not ask.")
@listing
@pass_session
def push_(session: Session, *, is_now: bool, is_rejected: bool, batch_id: str | None, is_sure: bool, form: str) -> int:
    """Close what is due and send it; exit 1 while anything is not accepted.

    Due is every hour that is over, and of the running one what makes at least a unit (a millionth of the currency).
    What waits for a retry, was refused or is held counts as not accepted; `weir stripe status` names it.
    """
    pusher = push.pusher(session.config, session.database, connect(session.config), clock.now)
    if batch_id is not None and not is_sure:
        click.confirm(release.warning(release.find(session.database, batch_id)) + ". Go on?", abort=True, err=True)
    with turn.waited_for(session.database, turn.PUSH):
        if batch_id is not None:
            batch = release.find(session.database, batch_id)
            billed_at = release.release(session.database, batch, session.actor, clock.now())
            click.echo(f"{batch_id}: released, billed at {instant_text(billed_at)}", err=True)
        if is_rejected:
            pusher.release_rejected()
        sent = pusher.run(is_closing=is_now)
    emit(form, [_sent_row(each) for each in sent], SENT_COLUMNS, title="sent")
    return _unaccepted(pusher)


@stripe.command()
@click.option("--offline", "is_offline", is_flag=True, help="Only what the ledger knows: do not ask Stripe for drift.")
@listing
@pass_session
def status(session: Session, *, is_offline: bool, form: str) -> None:
    """Show batches by state, units by customer, and what needs a person.

    Stripe is asked whether its meters and prices are still as setup left them; with --csv it is not.
    """
    drift, unknown = _drift(session) if form != "csv" and not is_offline else ([], None)
    with session.database.reading() as conn:
        counts = standings.counts(conn)
        events_by_state = inbox.counts(conn)
        customers = standings.standings(conn)
        attention = outbox.in_state(conn, NEEDS_A_PERSON, ATTENTION_ROWS_MAX)
        by_meter = token_meters.units_by_meter(conn, [str(state) for state in outbox.DELIVERED])
    currency = session.config.billing.currency
    rows: list[Row] = [
        {
            "customer": each.name,
            "customer_id": each.customer_id,
            "stripe_customer": each.stripe_customer_id,
            "units_sent": each.units_sent,
            "units_unsent": each.units_unsent,
            "carry_pico": each.carry,
            "unassigned": amount_text(each.unassigned),
            "currency": currency,
        }
        for each in customers
    ]
    needing: list[Row] = [_batch_row(batch) for batch in attention]
    meters: list[Row] = [
        {"meter": name, "units_sent": sent, "units_unsent": unsent} for name, (sent, unsent) in by_meter.items()
    ]
    if form == "json":
        found: dict[str, object] = {"batches": counts, "customers": rows, "attention": needing, "meters": meters}
        emit_one(form, found | {"events": events_by_state, "drift": drift, "drift_unknown": unknown})
        return
    if form == "table":
        emit_one(form, counts or {"batches": "none yet"}, title="batches")
    emit(form, rows, CUSTOMER_COLUMNS, title="customers")
    if form == "table" and session.config.stripe.mode == "tokens":
        emit(form, meters, METER_COLUMNS, title="meters")
    if drift:
        emit(form, drift, DRIFT_COLUMNS, title="changed at Stripe since setup")
    if unknown is not None:
        click.echo(f"weir: whether somebody changed anything at Stripe is not known: {unknown}", err=True)
    failed = events_by_state.get(str(inbox.State.FAILED), 0)
    if failed:
        told = f"weir: {failed} events of Stripe's had no effect: `weir stripe events --state failed`, then `replay`"
        click.echo(told, err=True)
    if form == "table" and needing:
        emit(form, needing, SENT_COLUMNS, title="needs a person")


def _drift(session: Session) -> tuple[list[Row], str | None]:
    """Return what is not as setup left it, and why that is not known."""
    if not session.config.stripe.is_active:
        return [], None
    try:
        found = drift_.look(session.config, session.database, connect(session.config))
    except StripeError as error:
        return [], str(error)
    columns = DRIFT_COLUMNS
    return [{name: getattr(each, name) for name in columns} for each in found], None


@stripe.command()
@click.option("--state", type=click.Choice([str(state) for state in inbox.State]), help="Only events in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=EVENT_ROWS_MAX, show_default=True)
@listing
@pass_session
def events(session: Session, state: str | None, limit: int, form: str) -> None:
    """List the webhook events that arrived, newest first."""
    with session.database.reading() as conn:
        found = inbox.listed(conn, None if state is None else inbox.State(state), limit)
    rows: list[Row] = [
        {
            "id": each.id,
            "type": each.type,
            "state": str(each.state),
            "object": each.object_id,
            "stripe_customer": each.stripe_customer_id,
            "created_at": instant_text(each.created_at),
            "received_at": instant_text(each.received_at),
            "settled_at": None if each.settled_at is None else instant_text(each.settled_at),
            "attempts": each.attempts,
            "last_error": each.last_error,
        }
        for each in found
    ]
    emit(form, rows, EVENT_COLUMNS, title="Stripe's events")


@stripe.command()
@click.argument("event_id", metavar="[ID]", required=False)
@click.option("--since", metavar="INSTANT", help="All events received since then, such as -3d, instead of one.")
@pass_session
def replay(session: Session, event_id: str | None, *, since: str | None) -> None:
    """Process the webhook event ID again, whatever became of it.

    `weir serve` or `weir worker` does it within a second. An event only says that something changed, and what is true
    is fetched: to process one twice does no harm.
    """
    if (event_id is None) == (since is None):
        raise UsageError("name one event, or give --since")
    if since is not None:
        with session.database.writing() as conn:
            count = inbox.replay_since(conn, parse_instant(since, session.now), session.now)
        click.echo(f"{count} events will be processed again")
        return
    assert event_id is not None, "one of them is given"
    with session.database.writing() as conn:
        if not inbox.replay(conn, event_id, session.now):
            raise NotFoundError(f"there is no event {event_id!r}; `weir stripe events` lists them")
    click.echo(f"{event_id} will be processed again")


def _setup_rows(meter: str, steps: Iterable[Step], known: Mapping[Kind, str]) -> list[Row]:
    drift_of = setup.drift(known, steps)
    return [
        {
            "kind": str(step.kind),
            "action": str(step.action),
            "stripe_id": step.stripe_id,
            "detail": step.detail,
            "meter": meter,
            "drift": drift_of.get(step.kind),
        }
        for step in steps
    ]


def _unaccepted(pusher: Pusher) -> int:
    with pusher.database.reading() as conn:
        left = {state: count for state, count in standings.counts(conn).items() if state in push.UNDELIVERED}
    if not left:
        return 0
    told = ", ".join(f"{count} {state}" for state, count in sorted(left.items()))
    click.echo(f"weir: not accepted by Stripe: {told} (see `weir stripe status`)", err=True)
    return 1


def _sent_row(sent: Sent) -> Row:
    return {**_batch_row(sent.batch), "state": str(sent.outcome.state), "answer": sent.outcome.last_answer}


def _batch_row(batch: Batch) -> dict[str, object]:
    return {
        "batch": batch.id,
        "customer": batch.customer_id,
        "stripe_customer": batch.stripe_customer_id,
        "window": instant_text(batch.window_start),
        "units": batch.units,
        "state": str(batch.state),
        "attempts": batch.attempts,
        "answer": batch.last_answer,
    }


stripe.add_command(reconcile)
