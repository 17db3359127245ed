"""What a new rate or margin must pass before it becomes history, where nothing can take it back.

The rules are those of the product: rates that look like a mistake of unit are refused, nobody reaches into
the past unasked, nothing is sold below cost unless that was said. They judge values, and the price book as it
will be, so that a new kind of rule is judged without a line being added here.
"""

from collections.abc import Iterable, Mapping

from billing.clock import Instant, instant_text
from billing.errors import InvalidAmountError, RefusedError, UsageError
from billing.limits import (
    MODEL_NAME_CHARS_MAX,
    RATE_PICO_MAX,
    RATE_UNUSUAL_HIGH,
    RATE_UNUSUAL_LOW,
    REQUEST_FEE_PICO_MAX,
)
from billing.money import (
    PICO_PER_MICRO,
    Pico,
    PicoPerToken,
    amount_number,
    parse_amount,
    parse_rate,
    rate_text,
)
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, Scope, parse_margin
from billing.pricing.plans import stand_in
from billing.pricing.quote import UNITS
from billing.pricing.stated import REQUEST, Stated, stated

AT_COST = Margin(MarginKind.MARKUP, 0)

Pair = tuple[str, str | None]
"""A model, and a customer (None: one without rules of its own)."""


def read_rate(text: str, option: str, *, force: bool) -> PicoPerToken:
    """Read a rate per 1M tokens that was given in `option`.

    Raises InvalidAmountError for what is no rate, RefusedError for one beyond the limit and, without `force`,
    for one of 0 or of an unusual size.
    """
    if not force:
        _refuse_price_of_one_token(text, option)
    rate = parse_rate(text)
    if rate > RATE_PICO_MAX:
        most = rate_text(PicoPerToken(RATE_PICO_MAX))
        raise RefusedError(f"{option} {text} is above the dearest rate, {most} per 1M tokens")
    if rate == 0 and not force:
        raise RefusedError(f"{option} {text} makes these tokens free; add --force if they are meant to be")
    if rate > RATE_UNUSUAL_HIGH and not force:
        raise RefusedError(
            f"{option} {text} is above {RATE_UNUSUAL_HIGH // PICO_PER_MICRO} per 1M tokens, mostly a mistake"
            " of unit (cents, or per more tokens); add --force if it is right"
        )
    return rate


def read_rate_or_none(text: str | None, option: str, *, force: bool) -> PicoPerToken | None:
    """Read the rate of a part, as `read_rate`; None where the option was not given."""
    return None if text is None else read_rate(text, option, force=force)


def _refuse_price_of_one_token(text: str, option: str) -> None:
    """Refuse a rate so small that it will be per token, before its many decimals are refused."""
    try:
        per_token = parse_amount(text)
    except InvalidAmountError:
        return  # parse_rate says what is wrong with it
    if 0 < per_token < RATE_UNUSUAL_LOW * PICO_PER_MICRO:
        per_million = rate_text(PicoPerToken(per_token))
        least = rate_text(PicoPerToken(RATE_UNUSUAL_LOW))
        or_force = "" if per_token % PICO_PER_MICRO else ", or add --force if it is right"
        raise RefusedError(
            f"{option} {text} is below {least} per 1M tokens and looks like a price per token, which is"
            f" {per_million} per 1M: write {option} {per_million}{or_force}"
        )


def read_fee(text: str, option: str) -> Pico:
    """Read a fee per request. Raises InvalidAmountError, and RefusedError beyond the limit."""
    fee = parse_amount(text)
    if fee < 0:
        raise InvalidAmountError(f"{option} {text} is negative; give what a request costs")
    if fee > REQUEST_FEE_PICO_MAX:
        most = amount_number(Pico(REQUEST_FEE_PICO_MAX))
        raise RefusedError(f"{option} {text} is above the dearest request, {most}")
    return fee


def read_stated(prices: Mapping[str, str], option: str, *, force: bool) -> Stated:
    """Read prices by unit, as `read_rate` and `read_fee` do. Raises UsageError for what has no price."""
    for unit in prices:
        if unit not in UNITS:
            raise UsageError(f"{option} {unit}: there is no such unit; choose among {', '.join(UNITS)}")
    return stated(
        {
            unit: read_fee(text, f"{option} {unit}")
            if unit == REQUEST
            else read_rate(text, f"{option} {unit}", force=force)
            for unit, text in prices.items()
        }
    )


def read_margin(text: str | None, fixed: Stated, *, allow_loss: bool, force: bool) -> Margin:
    """Read a rule's margin; it may be left out (and is 0 %) where input and output have fixed prices.

    Then only a fee per request can be left to it, which is sold at cost. Raises what `parse_margin` does.
    """
    if text is not None:
        return parse_margin(text, allow_loss=allow_loss, force=force)
    if not {"input", "output"} <= dict(fixed).keys():
        raise UsageError("say a margin, such as 30%, or fix the prices of both input and output")
    return AT_COST


def check_model_name(model: str) -> None:
    """Refuse what no client can ask for, or what looks like a pattern. Raises UsageError."""
    if not model or len(model) > MODEL_NAME_CHARS_MAX or model != model.strip() or not model.isprintable():
        raise UsageError(
            f"{model[:40]!r} is no model name: 1 to {MODEL_NAME_CHARS_MAX} printable characters, no blank"
            " before or after"
        )
    if "*" in model or "?" in model:
        raise UsageError(f"{model!r}: names of models are exact, there are no wildcards; set each model")


def check_start(effective_from: Instant, recorded_at: Instant, *, backdate: bool) -> None:
    """Refuse a version that begins before it is recorded, unless that was asked for. Raises RefusedError."""
    if effective_from < recorded_at and not backdate:
        raise RefusedError(
            f"--from {instant_text(effective_from)} is in the past; leave it out to begin now, or add"
            " --backdate (recorded events keep their prices)"
        )


def affected_by_cost(book: PriceBook, model: str) -> list[Pair]:
    """List whose price can follow from a cost of this model: everybody's."""
    return [(model, None), *((model, customer_id) for customer_id in book.customers_with_rules())]


def affected_by_rule(book: PriceBook, scope: Scope) -> list[Pair]:
    """List whose price can follow from a rule of this scope.

    One customer without rules stands for all where the scope names none: whenever the rule wins for somebody,
    it wins for those without rules of their own, and at the same price.
    """
    models = book.models() if scope.model is None else (scope.model,)
    buyer = scope.customer_id if scope.plan_id is None else stand_in(scope.plan_id)
    return [(model, buyer) for model in models]


def affected_by_floor(book: PriceBook, scope: Scope) -> list[Pair]:
    """List whose price can follow from a floor of this scope: also those with more specific rules."""
    models = book.models() if scope.model is None else (scope.model,)
    is_of_one = scope.customer_id is not None
    buyers = (scope.customer_id,) if is_of_one else (None, *book.customers_with_rules())
    return [(model, customer_id) for model in models for customer_id in buyers]


def check_prices(book: PriceBook, pairs: Iterable[Pair], since: Instant) -> None:
    """Refuse a book that from an instant on sells below cost without leave, for nothing, or beyond limits.

    `book` is the book as it will be. Raises RefusedError, which names model, customer and instant.
    """
    for model, customer_id in pairs:
        for at in (since, *book.starts(model, customer_id, since)):
            _check_quote(book, model, customer_id, at)


def _check_quote(book: PriceBook, model: str, customer_id: str | None, at: Instant) -> None:
    quote = book.resolve(model, customer_id, at)
    if quote is None:
        return
    rule = book.winner(model, customer_id, at)
    subject = model if customer_id is None else f"{model} for {customer_id}"
    where = f"from {instant_text(at)} under margin {quote.margin}"
    if units := quote.units_beyond_limit():
        raise RefusedError(f"{subject}: {', '.join(units)} would be beyond the limit {where}; lower it")
    if units := quote.units_given_away():
        raise RefusedError(f"{subject}: {', '.join(units)} would be sold for 0 {where}; raise the margin")
    if (units := quote.units_below_cost()) and not (rule is not None and rule.allow_loss):
        raise RefusedError(
            f"{subject}: {', '.join(units)} would be sold below cost {where}; add --allow-loss if it is meant"
        )
