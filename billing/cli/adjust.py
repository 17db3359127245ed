"""`weir adjust`: corrections, as new events that name the original; nothing recorded is ever changed.

A request is corrected in one transaction with its reason; many (`--filter`) by hundreds, so that the gateway never
waits long. With `--key` a command that was cut off is simply run again: what it has corrected stays corrected once.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from billing import ids
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, listing
from billing.clock import Instant, instant_text, parse_instant
from billing.errors import RefusedError, UsageError
from billing.ledger import accounts, adjustments, versions
from billing.ledger.adjustments import CHUNK_ROWS, Adjusted, Choice, Order, Prices
from billing.ledger.credit import REASON_CHARS_MAX
from billing.ledger.database import Connection
from billing.money import Pico, amount_text, parse_amount
from billing.pricing.correction import Add, Change, Recount, Refund

ROW_COLUMNS = ("request", "customer", "model", "amount", "net_amount", "currency", "adjustment", "note")
SUM_COLUMNS = ("customer_id", "events", "skipped", "amount", "cost", "currency", "key", "note")
KEY_CHARS_MAX = 200
THEN = "then"
_COLUMNS = {"model": "model", "key": "api_key_id", "upstream": "upstream", "outcome": "outcome", "endpoint": "endpoint"}
FILTERS = ("customer", *_COLUMNS, "since", "until")


@dataclass(slots=True)
class Sum:
    """What a customer's corrections come to."""

    events: int = 0
    skipped: int = 0
    amount: int = 0
    cost: int = 0
    note: str | None = None

    def add(self, each: Adjusted) -> None:
        """Count one event."""
        if each.adjustment is None or not each.is_new:
            self.skipped += 1
            self.note = self.note or each.because
            return
        self.events += 1
        self.amount += each.adjustment.amount_pico
        self.cost += each.adjustment.cost_pico


@click.command()
@click.argument("request_ids", metavar="[REQUEST_ID]...", nargs=-1)
@click.option(
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help=f"All requests that match, instead of ids; may be given several times: {', '.join(FILTERS)}.",
)
@click.option("--reason", required=True, help="Why; the customer sees it.")
@click.option("--refund", "is_refund", is_flag=True, help="Give back all that the request still comes to.")
@click.option("--amount", "amount_text_", metavar="DIFFERENCE", help="Add an amount, such as -0.002, to each request.")
@click.option(
    "--reprice",
    metavar="INSTANT",
    help="Price it by the rates and margins of another instant; 'then': of its own, with what was backdated since.",
)
@click.option("--input-tokens", type=int, metavar="N", help="The right count of prompt tokens.")
@click.option("--cached-input-tokens", type=int, metavar="N", help="The right count of cached prompt tokens.")
@click.option("--image-input-tokens", type=int, metavar="N", help="The right count of uncached image tokens.")
@click.option("--audio-input-tokens", type=int, metavar="N", help="The right count of uncached audio tokens.")
@click.option("--output-tokens", type=int, metavar="N", help="The right count of generated tokens.")
@click.option("--reasoning-tokens", type=int, metavar="N", help="The right count of reasoning tokens.")
@click.option(
    "--key", metavar="TEXT", help="Names this correction: run again with the same key, it does nothing twice."
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before many requests are corrected.")
@listing
@pass_session
def adjust(
    session: Session,
    request_ids: tuple[str, ...],
    *,
    filters: tuple[str, ...],
    reason: str,
    is_refund: bool,
    amount_text_: str | None,
    reprice: str | None,
    key: str | None,
    dry_run: bool,
    yes: bool,
    form: str,
    input_tokens: int | None,
    cached_input_tokens: int | None,
    image_input_tokens: int | None,
    audio_input_tokens: int | None,
    output_tokens: int | None,
    reasoning_tokens: int | None,
) -> None:
    """Correct recorded requests by new events: give back, charge more, price or count anew.

    The adjustment counts in the present hour and billing period, in the customer's usage and towards Stripe, where
    what is given back lowers the next amounts; what credit had paid for becomes credit again. Nothing recorded is
    changed, and no request comes to less than 0.
    """
    if bool(request_ids) == bool(filters):
        raise UsageError("name the request by its x-request-id, or choose many by --filter NAME=VALUE; one of both")
    _check_texts(reason, key)
    recount = Recount(
        input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, image_input_tokens, audio_input_tokens
    )
    change = _change(session, amount_text_, reprice, recount, is_refund=is_refund)
    words = f"reprice {reprice}" if isinstance(change, Prices) and change.at is None else str(change)
    if isinstance(change, Prices) and change.at is not None:
        words = f"reprice {instant_text(change.at)}"
    order = Order(
        run_key=key or ids.new_id("adj"),
        change=words,
        reason=reason,
        actor=session.actor,
        at=session.now,
        currency=session.config.billing.currency,
    )
    if request_ids:
        _adjust_named(session, request_ids, order, change, form, is_preview=dry_run)
    else:
        _adjust_matching(session, filters, order, change, form, is_preview=dry_run, is_sure=yes)


def _check_texts(reason: str, key: str | None) -> None:
    if not reason.strip() or len(reason) > REASON_CHARS_MAX or not reason.isprintable():
        raise UsageError(f"--reason is one line of 1 to {REASON_CHARS_MAX} characters: the customer reads it")
    if key is not None and (not key or len(key) > KEY_CHARS_MAX or not key.isprintable()):
        raise UsageError(f"--key has 1 to {KEY_CHARS_MAX} printable characters")


def _change(
    session: Session, amount: str | None, reprice: str | None, recount: Recount, *, is_refund: bool
) -> Change | Prices:
    """Return the one change that was asked for. Raises UsageError for none, or several."""
    asked: list[Change | Prices] = []
    if is_refund:
        asked.append(Refund())
    if amount is not None:
        asked.append(Add(_bounded(parse_amount(amount))))
    if reprice is not None:
        settings = session.config.billing
        with session.database.reading() as conn:
            book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        asked.append(Prices(book, None if reprice == THEN else parse_instant(reprice, session.now)))
    if recount != Recount():
        asked.append(recount)
    if len(asked) != 1:
        raise UsageError(
            "say what to correct by one of --refund, --amount, --reprice, or the counts (--output-tokens …)"
        )
    return asked[0]


def _bounded(amount: Pico) -> Pico:
    if not -(2**62) < amount < 2**62:
        raise UsageError("the amount is beyond what one event can come to")
    return amount


# by id


def _adjust_named(
    session: Session,
    request_ids: Sequence[str],
    order: Order,
    change: Change | Prices,
    form: str,
    *,
    is_preview: bool,
) -> None:
    ids_once = list(dict.fromkeys(request_ids))
    if len(ids_once) > CHUNK_ROWS:
        raise UsageError(f"at most {CHUNK_ROWS} requests can be named at once; choose them by --filter")
    act = adjustments.preview if is_preview else adjustments.adjust
    with session.database.writing() as conn:
        done = act(conn, ids_once, order, change)
        for each in done:
            if each.adjustment is None:
                raise RefusedError(f"{each.original.id}: {each.because}; nothing was changed")
        rows = [_row(conn, each, order) for each in done]
    emit(form, rows, ROW_COLUMNS)


def _row(conn: Connection, each: Adjusted, order: Order) -> Row:
    event = each.adjustment
    assert event is not None, "what has no adjustment was refused"
    later = {note.event_id: note.amount for note in adjustments.of_request(conn, each.original.id)}
    later[event.id] = Pico(event.amount_pico)  # A preview has left no trace.
    return {
        "adjustment": event.id,
        "request": each.original.id,
        "customer": accounts.get_customer(conn, event.customer_id).name,
        "customer_id": event.customer_id,
        "model": event.model,
        "change": order.change,
        "input_tokens": event.input_tokens,
        "cached_input_tokens": event.cached_input_tokens,
        "image_input_tokens": event.image_input_tokens,
        "audio_input_tokens": event.audio_input_tokens,
        "output_tokens": event.output_tokens,
        "reasoning_tokens": event.reasoning_tokens,
        "cost": amount_text(Pico(event.cost_pico)),
        "amount": amount_text(Pico(event.amount_pico)),
        "net_amount": amount_text(Pico(each.original.amount_pico + sum(later.values()))),
        "currency": order.currency,
        "reason": order.reason,
        "key": order.run_key,
        "window_start": instant_text(Instant(event.window_start)),
        "note": each.because,
    }


# by filter


def _adjust_matching(
    session: Session,
    filters: Sequence[str],
    order: Order,
    change: Change | Prices,
    form: str,
    *,
    is_preview: bool,
    is_sure: bool,
) -> None:
    with session.database.reading() as conn:
        choice = _choice(conn, filters, session.now)
    if is_preview or not is_sure:
        planned = _run(session, choice, order, change, is_preview=True)
        if is_preview:
            emit(form, _sum_rows(planned, order), SUM_COLUMNS, title="would be adjusted" if form == "table" else None)
            return
        _confirm(planned, order)
    done = _run(session, choice, order, change, is_preview=False)
    emit(form, _sum_rows(done, order), SUM_COLUMNS)


def _choice(conn: Connection, filters: Sequence[str], now: Instant) -> Choice:
    """Read the filters. Raises UsageError for an unknown or repeated one, NotFoundError for a customer."""
    given: dict[str, str] = {}
    for text in filters:
        name, sign, value = text.partition("=")
        if not sign or not value or name not in FILTERS or name in given:
            raise UsageError(f"--filter {text}: write NAME=VALUE, each name once: {', '.join(FILTERS)}")
        given[name] = value
    equal = {_COLUMNS[name]: value for name, value in given.items() if name in _COLUMNS}
    if "customer" in given:
        equal["customer_id"] = accounts.find_customer(conn, given["customer"]).id
    since, until = (parse_instant(given[name], now) if name in given else None for name in ("since", "until"))
    return Choice(since, until, equal)


def _run(
    session: Session, choice: Choice, order: Order, change: Change | Prices, *, is_preview: bool
) -> dict[str, Sum]:
    """Correct (or try) all chosen events, a transaction for each chunk; return the sums by customer."""
    sums: dict[str, Sum] = {}
    act = adjustments.preview if is_preview else adjustments.adjust
    for chunk in _chunks(session, choice):
        with session.database.writing() as conn:
            for each in act(conn, chunk, order, change):
                sums.setdefault(each.original.customer_id, Sum()).add(each)
    return sums


def _chunks(session: Session, choice: Choice) -> Iterator[list[str]]:
    after = ""
    while True:
        with session.database.reading() as conn:
            chunk = adjustments.chosen(conn, choice, after)
        if not chunk:
            return
        yield chunk
        after = chunk[-1]


def _confirm(planned: dict[str, Sum], order: Order) -> None:
    count, amount = sum(each.events for each in planned.values()), sum(each.amount for each in planned.values())
    what = f"{count} requests of {len(planned)} customers, together {amount_text(Pico(amount))} {order.currency}"
    if not sys.stdin.isatty():
        raise RefusedError(f"{order.change}: {what}; add --yes if that is meant")
    click.confirm(f"{order.change}: {what}. Write these adjustments?", abort=True, err=True)


def _sum_rows(sums: dict[str, Sum], order: Order) -> list[Row]:
    return [
        {
            "customer_id": customer_id,
            "change": order.change,
            "events": each.events,
            "skipped": each.skipped,
            "amount": amount_text(Pico(each.amount)),
            "cost": amount_text(Pico(each.cost)),
            "currency": order.currency,
            "reason": order.reason,
            "key": order.run_key,
            "note": each.note,
        }
        for customer_id, each in sorted(sums.items())
    ]
