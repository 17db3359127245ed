"""Corrections: what has to be added to a recorded event so that it comes to what it should have. Pure.

An event is never changed (I5): a correction is a difference, in tokens and money, that a new event carries. Every
correction is judged on where the event stands, which is its own row plus all corrections before: so a second refund
finds nothing left, and a new price after a goodwill credit leaves that credit alone.

Invariant: what an event comes to after a correction is never below 0, in tokens and in money. An event that was given
back as a whole stays so: neither new prices nor new counts charge for it again.
"""

from dataclasses import dataclass, replace

from billing.errors import RefusedError
from billing.limits import TOKENS_PER_EVENT_MAX
from billing.money import Pico, amount_number
from billing.pricing.quote import Quote
from billing.usage import Usage

NOTHING = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an event stands: its usage and its money with all corrections, and the quote that prices it now.

    `is_under_terms`: a plan's terms have adjusted it, and will again when its counts or prices are corrected.
    """

    usage: Usage
    cost: Pico
    amount: Pico
    quote: Quote
    is_refunded: bool
    is_under_terms: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """What a correction adds (mostly less than 0), and the quote that prices the event from then on."""

    usage: Usage
    cost: Pico
    amount: Pico
    quote: Quote

    @property
    def is_nothing(self) -> bool:
        """Whether it changes neither tokens nor money."""
        return self.usage == NOTHING and self.cost == 0 and self.amount == 0


@dataclass(frozen=True, slots=True)
class Refund:
    """Give back all that the event still comes to; the tokens stay on record, and so does what they cost us."""

    def __str__(self) -> str:
        """Name the change, as `adjustments.change` keeps it."""
        return "refund"


@dataclass(frozen=True, slots=True)
class Add:
    """Add an amount, which mostly is below 0."""

    amount: Pico

    def __str__(self) -> str:
        """Name the change, as `adjustments.change` keeps it."""
        return f"amount {amount_number(self.amount)}"


@dataclass(frozen=True, slots=True)
class Reprice:
    """Price (and cost) the event by another quote; `when` says in words where that quote comes from."""

    quote: Quote
    when: str

    def __str__(self) -> str:
        """Name the change, as `adjustments.change` keeps it: the same for all events of one command."""
        return f"reprice {self.when}"


@dataclass(frozen=True, slots=True)
class Recount:
    """The right counts of tokens, priced as the event is; None leaves a count as it is."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    image_input_tokens: int | None = None
    audio_input_tokens: int | None = None

    def __str__(self) -> str:
        """Name the change, as `adjustments.change` keeps it."""
        given = {name: getattr(self, name) for name in Usage._fields}
        return "tokens " + " ".join(f"{name}={value}" for name, value in given.items() if value is not None)


Change = Refund | Add | Reprice | Recount


def difference(standing: Standing, change: Change) -> Difference:
    """Return what the change adds to an event.

    Raises RefusedError for what would take the event below 0, and for new prices or counts of one that was refunded.
    """
    if isinstance(change, Reprice | Recount) and standing.is_refunded:
        raise RefusedError("it was given back as a whole; charge it with --amount if that is meant")
    found = _difference(standing, change)
    if isinstance(change, Reprice | Recount) and standing.is_under_terms:
        found = replace(found, amount=Pico(max(found.amount, -standing.amount)))
    after = standing.amount + found.amount
    if after < 0:
        raise RefusedError(
            f"it comes to {amount_number(standing.amount)}, from which {amount_number(Pico(-found.amount))} can not be"
            " taken; --refund takes all there is"
        )
    return found


def _difference(standing: Standing, change: Change) -> Difference:
    match change:
        case Refund():
            return Difference(NOTHING, Pico(0), Pico(-standing.amount), standing.quote)
        case Add(amount):
            return Difference(NOTHING, Pico(0), amount, standing.quote)
        case Reprice(quote, _):
            before = standing.quote
            cost = quote.cost.charge(standing.usage) - before.cost.charge(standing.usage)
            amount = Pico(quote.price.charge(standing.usage) - before.price.charge(standing.usage))
            return Difference(NOTHING, Pico(cost), amount, quote)
        case Recount():
            return _recounted(standing, change)


def _recounted(standing: Standing, change: Recount) -> Difference:
    """Price the difference of counts at the event's own unit prices; the request's fee is in both and falls out."""
    old, quote = standing.usage, standing.quote
    given = {name: getattr(change, name) for name in Usage._fields}
    new = old._replace(**{name: value for name, value in given.items() if value is not None})
    _refuse_impossible(new)
    added = Usage(*(after - before for after, before in zip(new, old, strict=True)))
    cost = Pico(quote.cost.charge(new) - quote.cost.charge(old))
    return Difference(added, cost, Pico(quote.price.charge(new) - quote.price.charge(old)), quote)


def _refuse_impossible(usage: Usage) -> None:
    if min(usage) < 0 or max(usage) > TOKENS_PER_EVENT_MAX:
        raise RefusedError(f"a count of tokens is between 0 and {TOKENS_PER_EVENT_MAX}")
    if usage.cached_input_tokens > usage.input_tokens:
        raise RefusedError("cached input tokens are a part of the input tokens and can not be more; give both")
    if usage.cached_input_tokens + usage.image_input_tokens + usage.audio_input_tokens > usage.input_tokens:
        raise RefusedError(
            "cached, image and audio input tokens are parts of the input tokens, together at most all of them; those of"
            " images and audio count without the cached ones"
        )
    if usage.reasoning_tokens > usage.output_tokens:
        raise RefusedError("reasoning tokens are a part of the output tokens and can not be more; give both")
