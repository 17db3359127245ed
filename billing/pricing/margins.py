"""Margins: their texts, their scopes, which rule wins for a model and a customer, and why.

A margin is a markup on the cost ("30%") or a share of the price ("margin:40%"), in millionths and so exact.
The most specific scope with a rule in force wins; within a scope `rates.version_at` decides. A rule without
a margin, made by `margin remove`, makes its scope silent from its instant on. While no scope speaks, the
default margin of the configuration holds. A rule may have a floor: then nothing under its scope is sold at a lower
margin, by whatever rule. It may state prices in money, fixed ones and minimums (`pricing.stated`).

A new scope is one field of `Scope` and one line of `scopes_for`; nothing else knows the order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from billing.clock import Instant, instant_text
from billing.errors import RefusedError, UsageError
from billing.limits import MARGIN_PPM_MAX, MARKUP_PPM_UNUSUAL
from billing.money import Pico, PicoPerToken, publish_rate
from billing.pricing.quote import UnitPrices
from billing.pricing.rates import Standing, standing, version_at
from billing.pricing.stated import Stated, at_least, differing, joined, with_fixed, with_minimum, words

PPM = 1_000_000
_PPM_PER_PERCENT = 10_000
_PERCENT_DECIMALS = 4
_MARGIN = re.compile(r"(margin:)?(-?)([0-9]{1,12})(?:\.([0-9]{1,30}))?%", re.ASCII)


class MarginKind(StrEnum):
    """What the share is a share of: the cost, or the price."""

    MARKUP = "markup"
    MARGIN = "margin"


@dataclass(frozen=True, slots=True)
class Margin:
    """A markup on the cost, or a share of the price, in millionths; below 0 it sells at a loss."""

    kind: MarginKind
    share_ppm: int

    def __post_init__(self) -> None:
        """Refuse what has no positive price: our own mistake, since `parse_margin` refuses it before."""
        assert self.kind is not MarginKind.MARKUP or self.share_ppm > -PPM, "the price would not be positive"
        assert self.kind is not MarginKind.MARGIN or self.share_ppm < PPM, "the price would be infinite"

    def __str__(self) -> str:
        """Write it as `parse_margin` reads it: "30%", "margin:12.5%"."""
        whole, fraction = divmod(abs(self.share_ppm), _PPM_PER_PERCENT)
        decimals = f".{fraction:0{_PERCENT_DECIMALS}d}".rstrip("0").rstrip(".")
        prefix = "margin:" if self.kind is MarginKind.MARGIN else ""
        return f"{prefix}{'-' if self.share_ppm < 0 else ''}{whole}{decimals}%"

    def is_below(self, other: "Margin") -> bool:
        """Tell whether it makes a lower price than the other."""
        (numerator, denominator), (others, others_denominator) = self.factor, other.factor
        return numerator * others_denominator < others * denominator

    @property
    def factor(self) -> tuple[int, int]:
        """The price as a multiple of the cost, exact: numerator and denominator, both positive."""
        match self.kind:
            case MarginKind.MARKUP:
                return PPM + self.share_ppm, PPM
            case MarginKind.MARGIN:
                return PPM, PPM - self.share_ppm
            case unreachable:
                assert_never(unreachable)


@dataclass(frozen=True, slots=True)
class Scope:
    """To whom a rule applies: a model, a customer or the customers of a plan, either with a model, or everything."""

    model: str | None = None
    customer_id: str | None = None
    plan_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse a scope of a customer and a plan: it would say something else whenever the customer changes plans."""
        assert self.customer_id is None or self.plan_id is None, "a rule is for a customer, or for a plan"

    def __str__(self) -> str:
        """Name the kind of scope: "global", "model", "plan", "plan+model", "customer", "customer+model"."""
        parts = [("customer", self.customer_id), ("plan", self.plan_id), ("model", self.model)]
        return "+".join(name for name, value in parts if value is not None) or "global"


@dataclass(frozen=True, slots=True)
class MarginRule:
    """A dated margin of one scope; `margin` None: from here on the scope has none.

    `floor` is the least margin of all that falls under the scope, whatever a more specific rule says, and `minimum` the
    least prices. `fixed` are the prices of this rule that follow no margin.
    """

    id: str
    scope: Scope
    margin: Margin | None
    allow_loss: bool
    effective_from: Instant
    recorded_at: Instant
    floor: Margin | None = None
    fixed: Stated = ()
    minimum: Stated = ()

    @property
    def words(self) -> str:
        """What it asks for those under it: "30%", "30%, fixed output 0.1000"; "none" for the end of a rule."""
        return "none" if self.margin is None else f"{self.margin}{joined([('fixed', self.fixed)])}"


RulesByScope = Mapping[Scope, tuple[MarginRule, ...]]
"""The versions of each scope, `in_order`."""


def parse_margin(text: str, *, allow_loss: bool = False, force: bool = False) -> Margin:
    """Read "30%" (on top of the cost) or "margin:40%" (of the price); at most 4 decimals.

    Raises UsageError for what is no such text, RefusedError for a negative margin without `allow_loss`, for
    one that has no price or a price of 0, and for a price above 11 times the cost without `force`.
    """
    match = _MARGIN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no margin; write 30% (on the cost) or margin:40% (of the price)")
    fraction = (match[4] or "").rstrip("0")
    if len(fraction) > _PERCENT_DECIMALS:
        raise UsageError(f"the margin {text!r} has more than {_PERCENT_DECIMALS} decimals; round it")
    share_ppm = int(match[3]) * _PPM_PER_PERCENT + int(fraction.ljust(_PERCENT_DECIMALS, "0"))
    kind = MarginKind.MARGIN if match[1] else MarginKind.MARKUP
    _refuse_impossible(text, kind, -share_ppm if match[2] else share_ppm, allow_loss=allow_loss)
    margin = Margin(kind, -share_ppm if match[2] else share_ppm)
    numerator, denominator = margin.factor
    if numerator * PPM > (PPM + MARKUP_PPM_UNUSUAL) * denominator and not force:
        raise RefusedError(
            f"{text} makes the price more than {(PPM + MARKUP_PPM_UNUSUAL) // PPM} times the cost, mostly a"
            " slip; add --force if it is meant"
        )
    return margin


def _refuse_impossible(text: str, kind: MarginKind, share_ppm: int, *, allow_loss: bool) -> None:
    if share_ppm < 0 and not allow_loss:
        raise RefusedError(f"{text} is negative and sells below cost; add --allow-loss if it is meant")
    if share_ppm <= -PPM and kind is MarginKind.MARKUP:
        raise RefusedError(f"{text} would give the tokens away; a markup is above -100%")
    if share_ppm >= PPM and kind is MarginKind.MARGIN:
        raise RefusedError(
            f"{text}: the margin in a price is below 100% of it; for a markup on the cost write"
            f" {text.removeprefix('margin:')}"
        )
    if abs(share_ppm) > MARGIN_PPM_MAX:
        raise RefusedError(f"{text} is beyond the largest margin, {MARGIN_PPM_MAX // _PPM_PER_PERCENT}%")


def apply(cost: PicoPerToken, margin: Margin) -> PicoPerToken:
    """Return the published price of a token: cost times factor, rounded half-up to 6 decimals per 1M."""
    numerator, denominator = margin.factor
    return publish_rate(cost * numerator, denominator)


def apply_to_fee(cost: Pico, margin: Margin) -> Pico:
    """Return the published price of a request: the fee times factor, rounded half-up to 12 decimals."""
    numerator, denominator = margin.factor
    return Pico(publish_rate(cost * numerator, denominator))


def apply_to_all(cost: UnitPrices, margin: Margin) -> UnitPrices:
    """Return the published price of every unit."""
    return UnitPrices(
        input=apply(cost.input, margin),
        cached_input=apply(cost.cached_input, margin),
        output=apply(cost.output, margin),
        reasoning=apply(cost.reasoning, margin),
        request=apply_to_fee(cost.request, margin),
        image_input=apply(cost.image_input, margin),
        audio_input=apply(cost.audio_input, margin),
    )


def is_exact(cost: int, margin: Margin) -> bool:
    """Tell whether the price of a unit came out without rounding."""
    numerator, denominator = margin.factor
    return cost * numerator % denominator == 0


@dataclass(frozen=True, slots=True)
class Buyer:
    """For whom a price is asked: a customer (None: one without rules) and the plan that it is on at the time."""

    customer_id: str | None = None
    plan_id: str | None = None


def scopes_for(model: str, buyer: Buyer) -> tuple[Scope, ...]:
    """Return the scopes that a request falls under, the most specific first."""
    scopes = [Scope(model=model), Scope()]
    if buyer.plan_id is not None:
        scopes = [Scope(model, plan_id=buyer.plan_id), Scope(plan_id=buyer.plan_id), *scopes]
    if buyer.customer_id is not None:
        scopes = [Scope(model, buyer.customer_id), Scope(customer_id=buyer.customer_id), *scopes]
    return tuple(scopes)


def winner(rules: RulesByScope, model: str, buyer: Buyer, at: Instant) -> MarginRule | None:
    """Return the rule in force with the most specific scope, or None if the default margin holds."""
    for scope in scopes_for(model, buyer):
        rule = version_at(rules.get(scope, ()), at)
        if rule is not None and rule.margin is not None:
            return rule
    return None


def highest_floor(rules: RulesByScope, model: str, buyer: Buyer, at: Instant) -> MarginRule | None:
    """Return the rule in force whose floor is the highest among those that a request falls under; None without any."""
    found: MarginRule | None = None
    for scope in scopes_for(model, buyer):
        rule = version_at(rules.get(scope, ()), at)
        if rule is None or rule.floor is None or rule.margin is None:
            continue
        if found is None or found.floor is None or found.floor.is_below(rule.floor):
            found = rule
    return found


def in_force(rules: RulesByScope, model: str, buyer: Buyer, at: Instant) -> list[MarginRule]:
    """Return the rules in force that a request falls under, the most specific first."""
    found = (version_at(rules.get(scope, ()), at) for scope in scopes_for(model, buyer))
    return [rule for rule in found if rule is not None and rule.margin is not None]


@dataclass(frozen=True, slots=True)
class Decision:
    """What decides a price: the rule (None: the default margin), its margin, and what raises the prices it makes."""

    rule: MarginRule | None
    margin: Margin
    fixed: Stated
    floor: Margin | None
    minimums: tuple[Stated, ...]

    def price(self, cost: UnitPrices) -> tuple[UnitPrices, str]:
        """Return the published prices, and in words what made them: "30%", "0%, fixed output 0.1000"."""
        stated = with_fixed(apply_to_all(cost, self.margin), self.fixed)
        lifted = stated if self.floor is None else at_least(stated, apply_to_all(cost, self.floor))
        price = lifted
        for minimum in self.minimums:
            price = with_minimum(price, minimum)
        by_floor = joined([(f"floor {self.floor}", differing(stated, lifted))])
        return price, f"{self.margin}{joined([('fixed', self.fixed)])}{by_floor}" + joined(
            [("minimum", differing(lifted, price))]
        )


def decide(rules: RulesByScope, default_margin: Margin, model: str, buyer: Buyer, at: Instant) -> Decision:
    """Return what decides a price at an instant. A floor above the margin decides in its place.

    Where prices are fixed, the floor can not: then it raises each unit that would be below it.
    """
    rule = winner(rules, model, buyer, at)
    margin = default_margin if rule is None or rule.margin is None else rule.margin
    fixed = () if rule is None else rule.fixed
    minimums = tuple(each.minimum for each in in_force(rules, model, buyer, at) if each.minimum)
    lifting = highest_floor(rules, model, buyer, at)
    least = None if lifting is None else lifting.floor
    if fixed or least is None or not margin.is_below(least):
        return Decision(rule, margin, fixed, least if fixed else None, minimums)
    return Decision(lifting, least, (), None, minimums)


class Verdict(StrEnum):
    """What became of a rule."""

    WINS = "wins"
    OVERRULED = "overruled"
    REMOVED = "removed"
    REPLACED = "replaced"
    SCHEDULED = "scheduled"


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that could apply and why it won or lost; `rule` is None for `billing.default_margin`."""

    rule: MarginRule | None
    margin: Margin | None
    verdict: Verdict
    because: str


def explain(rules: RulesByScope, default_margin: Margin, model: str, buyer: Buyer, at: Instant) -> tuple[Reason, ...]:
    """Return every rule that could apply: most specific scope first, newest first in it, the default last."""
    won = winner(rules, model, buyer, at)
    margin = default_margin if won is None or won.margin is None else won.margin
    is_fixed = won is not None and bool(won.fixed)
    lifted = _lifted(margin, highest_floor(rules, model, buyer, at), is_fixed=is_fixed)
    lifted += _held_up(in_force(rules, model, buyer, at))
    reasons = [
        _reason(rules[scope], rule, won, at, lifted)
        for scope in scopes_for(model, buyer)
        for rule in reversed(rules.get(scope, ()))
    ]
    if won is None:
        default = Reason(None, default_margin, Verdict.WINS, f"no rule is in force{lifted}")
    else:
        default = Reason(None, default_margin, Verdict.OVERRULED, f"a {won.scope} rule is in force")
    return (*reasons, default)


def _lifted(margin: Margin, floor: MarginRule | None, *, is_fixed: bool) -> str:
    """Say, if a floor makes the price higher than the rule that wins (or may, where prices are fixed), which one."""
    if floor is None or floor.floor is None:
        return ""
    if is_fixed:
        return f"; no unit below the floor {floor.floor} of {floor.id} ({floor.scope})"
    if not margin.is_below(floor.floor):
        return ""
    return f"; raised to the floor {floor.floor} of {floor.id} ({floor.scope})"


def _held_up(rules: list[MarginRule]) -> str:
    """Name the minimums that hold."""
    return "".join(f"; at least {words(rule.minimum)} by {rule.id} ({rule.scope})" for rule in rules if rule.minimum)


def _reason(
    versions: tuple[MarginRule, ...], rule: MarginRule, won: MarginRule | None, at: Instant, lifted: str
) -> Reason:
    since = instant_text(rule.effective_from)
    match standing(versions, rule, at):
        case Standing.SCHEDULED:
            return Reason(rule, rule.margin, Verdict.SCHEDULED, f"begins at {since}")
        case Standing.REPLACED:
            return Reason(rule, rule.margin, Verdict.REPLACED, _replaced_by(versions, rule))
        case Standing.IN_FORCE:
            pass
        case unreachable:
            assert_never(unreachable)
    if rule.margin is None:
        return Reason(rule, None, Verdict.REMOVED, f"the {rule.scope} scope has no rule since {since}")
    if won is not None and rule.id == won.id:
        return Reason(rule, rule.margin, Verdict.WINS, f"the most specific rule in force{lifted}")
    assert won is not None, "a rule in force loses only to another rule"
    return Reason(rule, rule.margin, Verdict.OVERRULED, f"a {won.scope} rule is more specific")


def _replaced_by(versions: tuple[MarginRule, ...], rule: MarginRule) -> str:
    """Say which version ended the rule's time: the one after it in order."""
    successor = versions[versions.index(rule) + 1]
    return f"by {successor.id} from {instant_text(successor.effective_from)}"
