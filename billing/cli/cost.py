"""`weir cost`: what models cost, as dated versions; prices follow from it through the margins.

What it really costs on own machines is in `billing/cli/hardware.py` (the machines) and `billing/cli/actual.py`.

Each `set` adds a version, and nothing is ever changed: an event keeps the prices that it was recorded with.
"""

import click

from billing import ids
from billing.cli import actual, hardware
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining
from billing.cli.unit_prices import UNIT_COLUMNS, fee_cell, rate_cell, unit_rows
from billing.clock import Instant, instant_text, parse_instant
from billing.ledger import versions
from billing.pricing import publish
from billing.pricing.book import PriceBook
from billing.pricing.rates import CostRate, next_start, standing, version_at

COLUMNS = (
    "model",
    "input",
    "cached_input",
    "image_input",
    "audio_input",
    "output",
    "reasoning",
    "request",
    "currency",
    "effective_from",
    "effective_until",
    "state",
    "id",
)
TABLE_COLUMNS = tuple(column for column in COLUMNS if column not in {"currency", "effective_until"})


@click.group()
def cost() -> None:
    """What your models cost you: rates per 1M tokens, each from an instant on."""


cost.add_command(hardware.hardware)
cost.add_command(actual.actual)
cost.add_command(actual.suggest)


@cost.command("set")
@click.argument("model")
@click.option("--input", "input_text", required=True, metavar="RATE", help="1M prompt tokens, such as 0.03.")
@click.option("--output", "output_text", required=True, metavar="RATE", help="1M generated tokens.")
@click.option("--cached-input", "cached_input_text", metavar="RATE", help="1M cached prompt tokens.")
@click.option("--image-input", "image_input_text", metavar="RATE", help="1M prompt tokens that stand for images.")
@click.option("--audio-input", "audio_input_text", metavar="RATE", help="1M prompt tokens that stand for audio.")
@click.option("--reasoning", "reasoning_text", metavar="RATE", help="1M tokens of reasoning.")
@click.option("--request", "request_text", metavar="AMOUNT", default="0", help="Each request.")
@click.option("--from", "from_text", metavar="INSTANT", default="now", help="When it begins.  [default: now]")
@click.option("--backdate", is_flag=True, help="Let --from lie in the past; history keeps its prices.")
@click.option("--force", is_flag=True, help="Take rates of 0, below 0.0001 or above 1000.")
@explaining
@listing
@pass_session
def set_cost(
    session: Session,
    model: str,
    *,
    input_text: str,
    output_text: str,
    cached_input_text: str | None,
    image_input_text: str | None,
    audio_input_text: str | None,
    reasoning_text: str | None,
    request_text: str,
    from_text: str,
    backdate: bool,
    force: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Set what MODEL costs from now on, or from an instant in the future.

    Rates are per 1M tokens in the currency of weir.toml, with at most 6 decimals. Cached input, images and
    audio cost as input, and reasoning as output, unless they have rates of their own; what is cached of an image
    costs as cached. History keeps its prices: also a cost that is backdated prices only what is not recorded yet.
    """
    settings = session.config.billing
    rate = CostRate(
        id=ids.new_id("cost"),
        model=model,
        input=publish.read_rate(input_text, "--input", force=force),
        cached_input=publish.read_rate_or_none(cached_input_text, "--cached-input", force=force),
        output=publish.read_rate(output_text, "--output", force=force),
        reasoning=publish.read_rate_or_none(reasoning_text, "--reasoning", force=force),
        request=publish.read_fee(request_text, "--request"),
        effective_from=parse_instant(from_text, session.now),
        recorded_at=session.now,
        image_input=publish.read_rate_or_none(image_input_text, "--image-input", force=force),
        audio_input=publish.read_rate_or_none(audio_input_text, "--audio-input", force=force),
    )
    with session.database.writing() as conn:
        book = versions.append_cost_rate(
            conn,
            rate,
            default_margin=settings.default_margin,
            currency=settings.currency,
            backdate=backdate,
            actor=actor or session.actor,
            reason=reason,
        )
    emit_one(form, _row(book, rate, session.now, form))
    if form == "table":
        _show_list_price(book, rate)


def _show_list_price(book: PriceBook, rate: CostRate) -> None:
    """Show what customers without a margin of their own will pay, and what was rounded on the way."""
    quote = book.resolve(rate.model, None, rate.effective_from)
    assert quote is not None, "the rate is in force at its own start"
    margin = book.margin(rate.model, None, rate.effective_from)
    emit("table", unit_rows(quote, margin), UNIT_COLUMNS, title=f"\nPrice under margin {margin}")


@cost.command("list")
@click.argument("model", required=False)
@click.option("--at", "at_text", metavar="INSTANT", help="Only what is in force at that instant.")
@listing
@pass_session
def list_costs(session: Session, model: str | None, *, at_text: str | None, form: str) -> None:
    """List costs, past and scheduled ones too; with --at only those in force then."""
    settings = session.config.billing
    at = session.now if at_text is None else parse_instant(at_text, session.now)
    with session.database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
    chosen = [name for name in book.models() if model in {None, name}]
    rows = [
        _row(book, rate, at, form)
        for name in chosen
        for rate in book.versions_of_cost(name)
        if at_text is None or version_at(book.versions_of_cost(name), at) == rate
    ]
    emit(form, rows, TABLE_COLUMNS if form == "table" else COLUMNS)


def _row(book: PriceBook, rate: CostRate, at: Instant, form: str) -> Row:
    siblings = book.versions_of_cost(rate.model)
    until = next_start(siblings, rate.effective_from)
    return {
        "id": rate.id,
        "model": rate.model,
        "input": rate_cell(rate.input, book.currency, form),
        "cached_input": rate_cell(rate.cached_input, book.currency, form),
        "image_input": rate_cell(rate.image_input, book.currency, form),
        "audio_input": rate_cell(rate.audio_input, book.currency, form),
        "output": rate_cell(rate.output, book.currency, form),
        "reasoning": rate_cell(rate.reasoning, book.currency, form),
        "request": fee_cell(rate.request, book.currency, form),
        "currency": book.currency,
        "effective_from": instant_text(rate.effective_from),
        "effective_until": None if until is None else instant_text(until),
        "recorded_at": instant_text(rate.recorded_at),
        "state": standing(siblings, rate, at).value,
    }
