"""`weir prices`: what others ask for the models that you serve, from files that they publish. Nothing is fetched."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import instant_text
from billing.errors import NotFoundError, UsageError
from billing.ledger import accounts, market_prices, versions
from billing.ledger.market_prices import Change
from billing.money import Pico, amount_number, rate_text
from billing.pricing import market
from billing.pricing.market import CURRENCY, MarketPrice, Source, is_same_model
from billing.pricing.quote import Quote
from billing.reports.margin import percentage

FILE_BYTES_MAX = 64 * 2**20
RATES = ("input", "cached_input", "output", "reasoning", "request")
LIST_COLUMNS = ("source", "model", *RATES, "currency", "recorded_at")
COMPARE_COLUMNS = (
    *("model", "source", "market_model", "price_input", "market_input", "input_pct"),
    *("price_output", "market_output", "output_pct", "cost_input", "cost_output", "currency", "note"),
)
SOURCE = click.Choice([source.value for source in Source])


@click.group()
def prices() -> None:
    """The market: prices of others, from LiteLLM's and OpenRouter's public files, beside your own."""


@prices.command("import")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@listing
@pass_session
def import_(session: Session, path: Path, *, form: str) -> None:
    """Read LiteLLM's price map or OpenRouter's list of models, and warn where a price of a model of yours changed.

    The files are model_prices_and_context_window.json of LiteLLM's repository, and what OpenRouter's /api/v1/models
    answers; fetch them as you like. Prices are kept as versions: the same file again changes nothing.
    """
    if path.stat().st_size > FILE_BYTES_MAX:
        raise UsageError(f"{path} is larger than {FILE_BYTES_MAX // 2**20} MB")
    file = market.read(path.read_bytes())
    with session.database.writing() as conn:
        found = market_prices.append(conn, file, session.now, session.actor)
    own = _own_names(session)
    _warn(change for change in found.changes if any(is_same_model(names, change.after.model) for names in own.values()))
    emit_one(
        form,
        {
            "source": file.source.value,
            "models": len(file.rates),
            "new": found.new,
            "changed": len(found.changes),
            "unchanged": found.unchanged,
            "not_priced_by_token": file.skipped,
            **({} if form == "table" else {"changes": [_changed(change) for change in found.changes]}),
        },
    )


@prices.command("list")
@click.argument("model", required=False)
@click.option("--source", type=SOURCE, help="Only what this source says.")
@click.option("--history", "is_history", is_flag=True, help="Every version, and not only the newest.")
@listing
@pass_session
def list_(session: Session, model: str | None, *, source: str | None, is_history: bool, form: str) -> None:
    """List imported prices per 1M tokens; with MODEL those whose name contains it."""
    with session.database.reading() as conn:
        read = market_prices.history if is_history else market_prices.latest
        found = read(conn, None if source is None else Source(source))
    chosen = [each for each in found if model is None or model.lower() in each.model.lower()]
    emit(form, [_row(each) for each in chosen], LIST_COLUMNS, title="prices of the market per 1M tokens")


@prices.command()
@click.option("--model", metavar="MODEL", help="Only this model of yours.")
@click.option("--against", metavar="NAME", help="With this model of the market, if it has another name.")
@click.option("--customer", metavar="NAME|ID", help="What this customer pays.  [default: who has no own margin]")
@click.option("--source", type=SOURCE, help="Only with what this source says.")
@listing
@pass_session
def compare(
    session: Session, *, model: str | None, against: str | None, customer: str | None, source: str | None, form: str
) -> None:
    """Compare what you ask now with the market; percentages are of the market's price: -20 is a fifth cheaper.

    Names are compared without who offers a model: qwen/qwen3.5-9b is Qwen/Qwen3.5-9B. A warning says where the market's
    price changed since it was imported before, and where it is below your cost.
    """
    if against is not None and model is None:
        raise UsageError("--against needs --model: which of yours is it?")
    settings = session.config.billing
    with session.database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        who = None if customer is None else accounts.find_customer(conn, customer).id
        found = market_prices.history(conn, None if source is None else Source(source))
    if not found:
        raise NotFoundError("no prices of the market are imported; `weir prices import FILE` reads some")
    own = _own_names(session)
    if model is not None and model not in own:
        raise NotFoundError(f"there is no model {model!r} with a cost; `weir cost list` shows all")
    rows: list[Row] = []
    for name in [model] if model is not None else sorted(own):
        quote = book.quote(name, who, session.now)
        names = own[name] if against is None else None
        for line in _lines(found, names, against):
            rows += [] if quote is None else [_compared(quote, line[-1])]
            _warn([] if len(line) < 2 else [Change(line[-2], line[-1])])
    for row in rows:
        if row["note"]:
            click.echo(f"weir: {row['model']}: {row['market_model']} ({row['source']}) {row['note']}", err=True)
    emit(form, rows, COMPARE_COLUMNS, title="own prices and the market's, per 1M tokens")


def _own_names(session: Session) -> dict[str, set[str]]:
    """Return the names of each model that has a cost: ours, and those that our model servers have for it."""
    settings = session.config.billing
    with session.database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
    names = {model: {model} for model in book.models()}
    for upstream in session.config.upstreams:
        for public, theirs in upstream.models.items():
            names.get(public, set()).add(theirs)
    return names


def _lines(
    found: Iterable[MarketPrice], names: Iterable[str] | None, against: str | None
) -> Iterator[list[MarketPrice]]:
    """Give the versions of each model of the market's that is meant, by source and name."""
    versions_of: dict[tuple[str, str], list[MarketPrice]] = {}
    for each in found:
        if each.model == against or (names is not None and is_same_model(names, each.model)):
            versions_of.setdefault((each.source, each.model), []).append(each)
    if against is not None and not versions_of:
        raise NotFoundError(f"no imported price is of {against!r}; `weir prices list` shows all")
    return (versions_of[key] for key in sorted(versions_of))


def _warn(changes: Iterable[Change]) -> None:
    for change in changes:
        before, after = _cells(change.before), _cells(change.after)
        told = ", ".join(
            f"{name} {before[name] or '-'} → {after[name] or '-'}" for name in RATES if before[name] != after[name]
        )
        click.echo(f"weir: {change.after.model} ({change.after.source}) changed: {told} {CURRENCY}", err=True)


def _changed(change: Change) -> Row:
    return {"model": change.after.model, "before": _cells(change.before), "after": _cells(change.after)}


def _cells(price: MarketPrice) -> dict[str, str | None]:
    rates = price.rates
    return {
        "input": rate_text(rates.input),
        "cached_input": None if rates.cached_input is None else rate_text(rates.cached_input),
        "output": rate_text(rates.output),
        "reasoning": None if rates.reasoning is None else rate_text(rates.reasoning),
        "request": amount_number(rates.request),
    }


def _row(price: MarketPrice) -> Row:
    named = {"source": price.source.value, "model": price.model}
    return {**named, **_cells(price), "currency": CURRENCY, "recorded_at": instant_text(price.recorded_at)}


def _compared(quote: Quote, theirs: MarketPrice) -> Row:
    """Return one line; there is no percentage between two currencies, or of what is free."""
    rates, is_one_currency = theirs.rates, quote.currency == CURRENCY
    pairs = ((quote.price.input, rates.input), (quote.price.output, rates.output))
    shares = [percentage(Pico(own - market), Pico(market)) if is_one_currency else None for own, market in pairs]
    is_dearer = is_one_currency and (quote.cost.input > rates.input or quote.cost.output > rates.output)
    note = "is offered below your cost" if is_dearer else None
    return {
        "model": quote.model,
        "source": theirs.source.value,
        "market_model": theirs.model,
        "price_input": rate_text(quote.price.input),
        "market_input": rate_text(rates.input),
        "input_pct": shares[0],
        "price_output": rate_text(quote.price.output),
        "market_output": rate_text(rates.output),
        "output_pct": shares[1],
        "cost_input": rate_text(quote.cost.input),
        "cost_output": rate_text(quote.cost.output),
        "currency": quote.currency,
        "market_currency": CURRENCY,
        "recorded_at": instant_text(theirs.recorded_at),
        "note": note if is_one_currency else f"is in {CURRENCY}: nothing is compared",
    }
