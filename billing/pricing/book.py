"""PriceBook: all rates and rules at one moment, and the only place where a price is decided, `quote`.

A book never changes; a changed ledger gives a new book. A model without a cost in force has no quote, so
nothing is served for nothing by accident. Names of models are exact: there is no wildcard to match more than
was meant.

Speed: a quote is worked out once per (model, customer) and version, and kept with the interval [since, until)
in which no version begins. The usual call is then one dictionary lookup and two comparisons of integers.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from billing.calendar import Per
from billing.clock import Instant
from billing.limits import QUOTE_CACHE_ENTRIES_MAX
from billing.pricing import margins
from billing.pricing.margins import Buyer, Decision, Margin, MarginRule, Reason, Scope
from billing.pricing.plans import Assignment, plan_of_stand_in, stand_in
from billing.pricing.quote import Quote, UnitPrices
from billing.pricing.rates import CostRate, in_order, next_start, version_at
from billing.pricing.terms import PlanTerms, Terms, known

FOREVER = Instant(2**63 - 1)

Timed = CostRate | MarginRule | Assignment

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class PriceBook:
    """An immutable snapshot of every cost rate and margin rule, in one currency."""

    __slots__ = (
        *("_assigned", "_held", "_rates", "_rules", "_terms", "assignments"),
        *("cost_rates", "currency", "default_margin", "margin_rules", "terms"),
    )

    def __init__(
        self,
        cost_rates: Iterable[CostRate],
        margin_rules: Iterable[MarginRule],
        default_margin: Margin,
        currency: str,
        assignments: Iterable[Assignment] = (),
        terms: Iterable[PlanTerms] = (),
    ) -> None:
        self.cost_rates = in_order(cost_rates)
        self.margin_rules = in_order(margin_rules)
        self.default_margin = default_margin
        self.currency = currency
        self._rates = _grouped((rate.model, rate) for rate in self.cost_rates)
        self._rules = _grouped((rule.scope, rule) for rule in self.margin_rules)
        self.assignments = in_order(assignments)
        self._assigned = _grouped((each.customer_id, each) for each in self.assignments)
        self.terms = in_order(terms)
        self._terms = _grouped((each.plan_id, each) for each in self.terms)
        self._held: dict[tuple[str, str | None], tuple[Quote, Instant, Instant]] = {}

    def quote(self, model: str, customer_id: str | None, at: Instant) -> Quote | None:
        """Return what the model costs and earns for the customer (None: for one without rules) at an instant.

        None while no cost is in force, or the price is beyond what the ledger can hold: then nothing is sold.
        """
        held = self._held.get((model, customer_id))
        if held is not None and held[1] <= at < held[2]:
            return held[0]
        return self._hold(model, customer_id, at)

    def _hold(self, model: str, customer_id: str | None, at: Instant) -> Quote | None:
        """Work a quote out and keep it; what has no quote is not kept, for clients may ask for any name."""
        quote = self.resolve(model, customer_id, at)
        if quote is None or quote.units_beyond_limit():
            return None
        since = max(_started(self._timelines(model, customer_id, at), at))
        until = self._next_start(model, customer_id, at)
        if len(self._held) >= QUOTE_CACHE_ENTRIES_MAX:
            self._held.clear()
        self._held[model, customer_id] = quote, since, FOREVER if until is None else until
        return quote

    def resolve(self, model: str, customer_id: str | None, at: Instant) -> Quote | None:
        """Work out the quote that rates and rules give, even one too high to be sold; None without a cost."""
        rate = self.cost_rate(model, at)
        if rate is None:
            return None
        decided = self._decided(model, customer_id, at)
        price, words = decided.price(rate.unit_prices)
        return Quote.of(
            model=model,
            currency=self.currency,
            cost_rate_id=rate.id,
            margin_rule_id=decided.rule.id if decided.rule is not None else None,
            margin=words,
            cost=rate.unit_prices,
            price=price,
        )

    def cost_rate(self, model: str, at: Instant) -> CostRate | None:
        """Return the cost of a model in force at an instant."""
        return version_at(self._rates.get(model, ()), at)

    def winner(self, model: str, customer_id: str | None, at: Instant) -> MarginRule | None:
        """Return the margin rule that decides at an instant, or None while the default margin does."""
        return margins.winner(self._rules, model, self.buyer(customer_id, at), at)

    def buyer(self, customer_id: str | None, at: Instant) -> Buyer:
        """Return the customer with the plan that it is on at an instant (`plans.stand_in` has one always)."""
        if customer_id is None:
            return Buyer()
        plan_id = plan_of_stand_in(customer_id)
        if plan_id is not None:
            return Buyer(None, plan_id)
        assigned = version_at(self._assigned.get(customer_id, ()), at)
        return Buyer(customer_id, None if assigned is None else assigned.plan_id)

    def versions_of_terms(self, plan_id: str) -> tuple[PlanTerms, ...]:
        """Return all terms of a plan in order."""
        return self._terms.get(plan_id, ())

    def terms_of(self, customer_id: str, at: Instant) -> Terms | None:
        """Return the terms of a request that begins at an instant: in force, and on record by then."""
        on_record = [each for each in self._assigned.get(customer_id, ()) if each.recorded_at <= at]
        assigned = version_at(on_record, at)
        if assigned is None or assigned.plan_id is None:
            return None
        version = version_at(known(self._terms.get(assigned.plan_id, ()), at), at)
        return None if version is None else version.terms

    def customers_under_terms(self) -> dict[str, tuple[Instant, frozenset[Per]]]:
        """Return who was on a plan with terms at some time: since when at the earliest, and their kinds of periods."""
        found: dict[str, tuple[Instant, frozenset[Per]]] = {}
        for each in self.assignments:
            versions = self._terms.get(each.plan_id or "", ())
            pers = frozenset(version.terms.per for version in versions if version.terms is not None)
            if pers:
                since, others = found.get(each.customer_id, (each.effective_from, frozenset()))
                found[each.customer_id] = min(since, each.effective_from), pers | others
        return found

    def margin(self, model: str, customer_id: str | None, at: Instant) -> Margin:
        """Return the margin that holds at an instant."""
        return self._decided(model, customer_id, at).margin

    def list_price(self, model: str, cost: UnitPrices, at: Instant) -> UnitPrices:
        """Return what whoever has no terms of its own pays for what costs so much."""
        return self._decided(model, None, at).price(cost)[0]

    def floor(self, model: str, customer_id: str | None, at: Instant) -> MarginRule | None:
        """Return the rule whose floor raises the price at an instant; None if the winner's own margin is no lower."""
        decided = self._decided(model, customer_id, at).rule
        return decided if decided is not self.winner(model, customer_id, at) else None

    def _decided(self, model: str, customer_id: str | None, at: Instant) -> Decision:
        return margins.decide(self._rules, self.default_margin, model, self.buyer(customer_id, at), at)

    def is_priced(self, model: str, customer_id: str | None, at: Instant) -> bool:
        """Tell whether the model may be sold to the customer at an instant."""
        return self.quote(model, customer_id, at) is not None

    def next_change(self, model: str, customer_id: str | None, at: Instant) -> Instant | None:
        """Return the first instant after `at` with another quote, or the first, or none any more."""
        present = self.quote(model, customer_id, at)
        for start in self.starts(model, customer_id, at):
            if self.quote(model, customer_id, start) != present:
                return start
        return None

    def explain(self, model: str, customer_id: str | None, at: Instant) -> tuple[Reason, ...]:
        """Return every margin rule that could apply and why it won or lost, the most specific first."""
        return margins.explain(self._rules, self.default_margin, model, self.buyer(customer_id, at), at)

    def models(self) -> tuple[str, ...]:
        """Return the models that have a cost at some time, sorted."""
        return tuple(sorted(self._rates))

    def customers_with_rules(self) -> tuple[str, ...]:
        """Return who has a margin of its own at some time, sorted: customers' ids, and a stand-in for each plan."""
        customers = {scope.customer_id for scope in self._rules if scope.customer_id is not None}
        return tuple(
            sorted(customers | {stand_in(scope.plan_id) for scope in self._rules if scope.plan_id is not None})
        )

    def versions_of_cost(self, model: str) -> tuple[CostRate, ...]:
        """Return all costs of a model in order."""
        return self._rates.get(model, ())

    def versions_of_margin(self, scope: Scope) -> tuple[MarginRule, ...]:
        """Return all rules of exactly this scope in order."""
        return self._rules.get(scope, ())

    def with_cost_rate(self, rate: CostRate) -> "PriceBook":
        """Return the book as it will be with one more rate."""
        return self.with_rates((*self.cost_rates, rate))

    def with_margin_rule(self, rule: MarginRule) -> "PriceBook":
        """Return the book as it will be with one more rule."""
        return self.with_rules((*self.margin_rules, rule))

    def as_of(self, recorded: Instant) -> "PriceBook":
        """Return the book as it was believed at an instant: with what had been recorded by then."""
        rates = (rate for rate in self.cost_rates if rate.recorded_at <= recorded)
        rules = (rule for rule in self.margin_rules if rule.recorded_at <= recorded)
        assigned = (each for each in self.assignments if each.recorded_at <= recorded)
        return PriceBook(rates, rules, self.default_margin, self.currency, assigned, known(self.terms, recorded))

    def scopes(self) -> tuple[Scope, ...]:
        """Return every scope that has a rule at some time: global and models first, then plans, then customers."""
        return tuple(sorted(self._rules, key=_scope_order))

    def with_rates(self, rates: Iterable[CostRate]) -> "PriceBook":
        """Return a book with these rates and no others."""
        return PriceBook(rates, self.margin_rules, self.default_margin, self.currency, self.assignments, self.terms)

    def with_rules(self, rules: Iterable[MarginRule]) -> "PriceBook":
        """Return a book with these rules and no others."""
        return PriceBook(self.cost_rates, rules, self.default_margin, self.currency, self.assignments, self.terms)

    def with_assignments(self, assignments: Iterable[Assignment]) -> "PriceBook":
        """Return a book with these assignments of plans and no others."""
        return PriceBook(
            self.cost_rates, self.margin_rules, self.default_margin, self.currency, assignments, self.terms
        )

    def starts(self, model: str, customer_id: str | None, after: Instant) -> Iterator[Instant]:
        """Give each later instant at which a version that matters to model and customer begins, in order."""
        start = self._next_start(model, customer_id, after)
        while start is not None:
            yield start
            start = self._next_start(model, customer_id, start)

    def _next_start(self, model: str, customer_id: str | None, at: Instant) -> Instant | None:
        timelines = self._timelines(model, customer_id, at)
        return min((start for line in timelines if (start := next_start(line, at)) is not None), default=None)

    def _timelines(self, model: str, customer_id: str | None, at: Instant) -> tuple[Sequence[Timed], ...]:
        """Return every list of versions that can change the quote until the customer changes plans, and after it."""
        scopes = margins.scopes_for(model, self.buyer(customer_id, at))
        assigned = self._assigned.get(customer_id or "", ())
        return self._rates.get(model, ()), assigned, *(self._rules.get(scope, ()) for scope in scopes)


def _scope_order(scope: Scope) -> tuple[str, str, str]:
    return scope.customer_id or "", scope.plan_id or "", scope.model or ""


def _started(timelines: Iterable[Sequence[Timed]], at: Instant) -> Iterator[Instant]:
    """Give the start of the version in force at an instant in each list that has one."""
    for line in timelines:
        version = version_at(line, at)
        if version is not None:
            yield version.effective_from


def _grouped(pairs: Iterable[tuple[_K, _V]]) -> dict[_K, tuple[_V, ...]]:
    """Group values by key, in their order."""
    groups: defaultdict[_K, list[_V]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: tuple(values) for key, values in groups.items()}
