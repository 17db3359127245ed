"""Scenarios: the price book as it would be under other margins or costs, and what usage would come to in it. Pure.

A scenario holds for all of history, as if it had been so from the beginning: it replaces all versions of what it
names, and leaves the rest as it is known today. More specific rules still win over it, as they would.

Sums suffice: an amount is linear in the counts of tokens, so that requests which fall under one quote are priced by
their sums, exactly. What has to be told apart is only on which side of a version's start a request began.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from billing.clock import Instant
from billing.money import Pico
from billing.pricing.book import PriceBook
from billing.pricing.margins import MarginRule
from billing.pricing.rates import CostRate
from billing.usage import Usage

BEGINNING = Instant(0)
NOTHING = Pico(0)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of one customer and model that began between two starts of versions, and what they came to.

    `at` is an instant of that time: all of them are priced as one that began then.
    """

    customer_id: str
    model: str
    at: Instant
    requests: int
    usage: Usage
    cost: Pico
    amount: Pico


@dataclass(frozen=True, slots=True)
class Money:
    """What requests earn and cost; `requests_unpriced` of them the scenario does not sell at all."""

    requests: int = 0
    revenue: Pico = NOTHING
    cost: Pico = NOTHING
    requests_unpriced: int = 0

    @property
    def margin(self) -> Pico:
        """What is earned beyond the cost."""
        return Pico(self.revenue - self.cost)

    def plus(self, other: "Money") -> "Money":
        """Add two together."""
        return Money(
            self.requests + other.requests,
            Pico(self.revenue + other.revenue),
            Pico(self.cost + other.cost),
            self.requests_unpriced + other.requests_unpriced,
        )


def with_margins(book: PriceBook, rules: Iterable[MarginRule], *, is_complete: bool) -> PriceBook:
    """Return the book in which these rules have always held; `is_complete`: and no others."""
    always = [replace(rule, effective_from=BEGINNING, recorded_at=BEGINNING) for rule in rules]
    scopes = {rule.scope for rule in always}
    kept = () if is_complete else (rule for rule in book.margin_rules if rule.scope not in scopes)
    return book.with_rules((*kept, *always))


def with_costs(book: PriceBook, rates: Iterable[CostRate]) -> PriceBook:
    """Return the book in which these costs have always held; other models keep theirs."""
    always = [replace(rate, effective_from=BEGINNING, recorded_at=BEGINNING) for rate in rates]
    models = {rate.model for rate in always}
    return book.with_rates((*(rate for rate in book.cost_rates if rate.model not in models), *always))


def starts_between(book: PriceBook, first: Instant, last: Instant) -> tuple[Instant, ...]:
    """Return the instants after `first` and up to `last` at which any version of the book begins, in order."""
    starts = {rate.effective_from for rate in book.cost_rates} | {rule.effective_from for rule in book.margin_rules}
    starts |= {assigned.effective_from for assigned in book.assignments}
    return tuple(sorted(start for start in starts if first < start <= last))


def billed(bucket: Bucket) -> Money:
    """Return what the requests came to."""
    return Money(bucket.requests, bucket.amount, bucket.cost)


def repriced(bucket: Bucket, book: PriceBook) -> Money:
    """Return what the requests come to in the scenario."""
    quote = book.quote(bucket.model, bucket.customer_id, bucket.at)
    if quote is None:
        return Money(bucket.requests, requests_unpriced=bucket.requests)
    return Money(
        bucket.requests,
        quote.price.charge_all(bucket.usage, bucket.requests),
        quote.cost.charge_all(bucket.usage, bucket.requests),
    )
