"""A whole rule set put in force at once: all versions that it takes are added in one transaction, or none is.

Every version has its line in the audit log with who and why, and the set one more, which names the command.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant, instant_text
from billing.ledger import audit, epoch, plan_terms, versions
from billing.pricing import change, publish
from billing.pricing.book import PriceBook
from billing.pricing.change import Change, RuleSet, TermsChange
from billing.pricing.terms import PlanTerms, Terms


@dataclass(frozen=True, slots=True)
class Order:
    """Who puts a rule set in force, from when on, why, and by which command ("margin.apply")."""

    action: str
    effective_from: Instant
    recorded_at: Instant
    actor: str
    reason: str | None
    backdate: bool = False


def apply(
    conn: sa.Connection, wanted: RuleSet, order: Order, *, default_margin: str, currency: str
) -> tuple[Change, ...]:
    """Put a rule set in force from an instant on, and return what had to be added; nothing if it is in force.

    Raises RefusedError where a rule of `pricing.publish` forbids a version, or the instant is past.
    """
    publish.check_start(order.effective_from, order.recorded_at, backdate=order.backdate)
    epoch.advance(conn)
    before = versions.load_book(conn, default_margin=default_margin, currency=currency)
    found = change.changes(before, wanted, order.effective_from)
    after = checked(before, found, order.recorded_at)
    known = {rule.id for rule in before.margin_rules}
    for rule in after.margin_rules:
        if rule.id not in known:
            versions.insert_margin_rule(conn, rule, actor=order.actor, reason=order.reason)
    if found:
        details = {
            "effective_from": instant_text(order.effective_from),
            "changes": len(found),
            "reason": order.reason,
        }
        subject = instant_text(order.effective_from)
        audit.record(
            conn, at=order.recorded_at, actor=order.actor, action=order.action, subject=subject, details=details
        )
    return found


def apply_terms(
    conn: sa.Connection, wanted: Mapping[str, Terms], order: Order, *, default_margin: str, currency: str
) -> tuple[TermsChange, ...]:
    """Put plans' terms in force as `apply` does margins; not before now, for what was used keeps its terms."""
    epoch.advance(conn)
    book = versions.load_book(conn, default_margin=default_margin, currency=currency)
    found = change.terms_changes(book, wanted, max(order.effective_from, order.recorded_at))
    for each in found:
        version = PlanTerms(ids.new_id("terms"), each.plan_id, each.after, each.effective_from, order.recorded_at)
        plan_terms.append(conn, version, actor=order.actor, reason=order.reason)
    return found


def checked(before: PriceBook, found: tuple[Change, ...], recorded_at: Instant) -> PriceBook:
    """Return the book with all changes made. Raises RefusedError if any of its prices may not be."""
    rules = [each.rule(ids.new_id("margin"), recorded_at) for each in found]
    book = before.with_rules((*before.margin_rules, *rules))
    for rule in rules:
        versions.check_rule(book, rule)
    return book
