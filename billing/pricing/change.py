"""From the rule set that is to the one that is wanted: which versions have to be added, and when. Pure.

A rule set is what each scope says. It is reached only by adding versions (I5): one for each scope that says something
else at the instant of the change, and one for each version that is scheduled after it, at that version's own start,
which it displaces as the later recorded one. So from the instant on the rule set is the wanted one, for good.
Applied again it changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from billing.clock import Instant
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginRule, Scope
from billing.pricing.rates import version_at
from billing.pricing.stated import Stated, joined
from billing.pricing.terms import Terms


@dataclass(frozen=True, slots=True)
class Says:
    """What a scope says: its margin, its floor, whether a loss is meant, and prices in money."""

    margin: Margin
    floor: Margin | None = None
    allow_loss: bool = False
    fixed: Stated = ()
    minimum: Stated = ()

    def __str__(self) -> str:
        """Write it in a line: "30%, fixed output 0.1000, floor 10%"."""
        parts = [str(self.margin) + joined([("fixed", self.fixed), ("minimum", self.minimum)])]
        parts += [f"floor {self.floor}"] if self.floor is not None else []
        parts += ["loss allowed"] if self.allow_loss else []
        return ", ".join(parts)


RuleSet = Mapping[Scope, Says]
"""What every scope that has a rule says; the others are silent."""


class Kind(StrEnum):
    """What a change does to its scope."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Change:
    """One version to add: from an instant on the scope says `after` (None: nothing) and no longer `before`."""

    kind: Kind
    scope: Scope
    effective_from: Instant
    before: Says | None
    after: Says | None

    def rule(self, rule_id: str, recorded_at: Instant) -> MarginRule:
        """Return the version."""
        says = self.after
        return MarginRule(
            id=rule_id,
            scope=self.scope,
            margin=None if says is None else says.margin,
            allow_loss=says is not None and says.allow_loss,
            effective_from=self.effective_from,
            recorded_at=recorded_at,
            floor=None if says is None else says.floor,
            fixed=() if says is None else says.fixed,
            minimum=() if says is None else says.minimum,
        )


@dataclass(frozen=True, slots=True)
class TermsChange:
    """One version of terms to add: from an instant on a plan has `after` (None: none) and no longer `before`."""

    kind: Kind
    plan_id: str
    effective_from: Instant
    before: Terms | None
    after: Terms | None


def terms_set(book: PriceBook, at: Instant) -> dict[str, Terms]:
    """Return the terms in force at an instant, by plan."""
    found = {plan_id: version_at(book.versions_of_terms(plan_id), at) for plan_id in _plans(book)}
    return {key: version.terms for key, version in found.items() if version is not None and version.terms is not None}


def terms_changes(book: PriceBook, wanted: Mapping[str, Terms], at: Instant) -> tuple[TermsChange, ...]:
    """Return what makes the plans' terms the wanted ones from an instant on, as `changes` does for margins."""
    found = []
    for plan_id in dict.fromkeys((*_plans(book), *wanted)):
        versions, after = book.versions_of_terms(plan_id), wanted.get(plan_id)
        starts = sorted({version.effective_from for version in versions if version.effective_from > at})
        for start in (at, *starts):
            version = version_at(versions, start)
            before = None if version is None else version.terms
            if before != after:
                found.append(TermsChange(_kind(before, after, is_later=start > at), plan_id, start, before, after))
    return tuple(found)


def _plans(book: PriceBook) -> tuple[str, ...]:
    return tuple(sorted({version.plan_id for version in book.terms}))


def said(rule: MarginRule | None) -> Says | None:
    """Return what a version says; None for none, and for the end of a rule."""
    if rule is None or rule.margin is None:
        return None
    return Says(rule.margin, rule.floor, rule.allow_loss, rule.fixed, rule.minimum)


def rule_set(book: PriceBook, at: Instant) -> dict[Scope, Says]:
    """Return the rule set in force at an instant."""
    found = {scope: said(version_at(book.versions_of_margin(scope), at)) for scope in book.scopes()}
    return {scope: says for scope, says in found.items() if says is not None}


def changes(book: PriceBook, wanted: RuleSet, at: Instant) -> tuple[Change, ...]:
    """Return what makes the rule set the wanted one from an instant on; in the book's order of scopes, then the new."""
    scopes = dict.fromkeys((*book.scopes(), *wanted))
    return tuple(change for scope in scopes for change in _of_scope(book, scope, wanted.get(scope), at))


def _of_scope(book: PriceBook, scope: Scope, wanted: Says | None, at: Instant) -> list[Change]:
    versions = book.versions_of_margin(scope)
    found = []
    now = said(version_at(versions, at))
    if now != wanted:
        found.append(Change(_kind(now, wanted), scope, at, now, wanted))
    for start in sorted({version.effective_from for version in versions if version.effective_from > at}):
        then = said(version_at(versions, start))
        if then != wanted:
            found.append(Change(Kind.CANCEL, scope, start, then, wanted))
    return found


def _kind(before: object, after: object, *, is_later: bool = False) -> Kind:
    if is_later:
        return Kind.CANCEL
    if after is None:
        return Kind.REMOVE
    return Kind.ADD if before is None else Kind.CHANGE
