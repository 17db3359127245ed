"""A customer's credit as a value: the grants that have something left, in the order in which they burn.

The order is that of Stripe's credit grants (https://docs.stripe.com/billing/subscriptions/usage-based/billing-credits):
priority, then the earliest expiry, then what was given before what was paid for, then the older one. Leases are slices
of one grant each, so that what is spent burns the grant that it was held on, though that may expire meanwhile.

Invariant: a grant's `left` is never negative and never below what is leased of it. What is leased when a grant expires
stays until its leases are closed: it was promised to requests that run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from billing.clock import Instant
from billing.limits import LEASE_PICO_MAX
from billing.money import Pico

LEASE_SHARES = 16
"""A lease takes at most a sixteenth of what is available, unless a request needs more: workers have to share it."""

PRIORITY_DEFAULT = 50
PRIORITY_MAX = 100


class Kind(StrEnum):
    """What an entry is: credit given, paid for, used, lapsed, paid back, taken back, corrected."""

    GRANT = "grant"
    TOPUP = "topup"
    BURN = "burn"
    EXPIRY = "expiry"
    REFUND = "refund"
    REVERSAL = "reversal"
    ADJUSTMENT = "adjustment"


class Grant(NamedTuple):
    """One credit and what is left of it; `priority` 0 burns first."""

    id: str
    kind: Kind
    priority: int
    expires_at: Instant | None
    granted_at: Instant
    left: Pico

    def is_expired(self, at: int) -> bool:
        """Tell whether it has expired; the instant itself belongs to the time after."""
        return self.expires_at is not None and self.expires_at <= at


Grants = tuple[Grant, ...]
BurnOrder = tuple[int, bool, int, bool, int, str]


def ordered(grants: Iterable[Grant]) -> Grants:
    """Return the grants in burn order."""
    return tuple(sorted(grants, key=burn_order))


def burn_order(grant: Grant) -> BurnOrder:
    """Return what grants are ordered by."""
    expires_at = grant.expires_at
    is_last = expires_at is None
    return grant.priority, is_last, expires_at or 0, grant.kind is Kind.TOPUP, grant.granted_at, grant.id


def changed(grants: Grants, grant_id: str, amount: int) -> tuple[Grants, Pico]:
    """Add a (mostly negative) amount to one grant; return all that have something left, and what that one has."""
    found = next(grant for grant in grants if grant.id == grant_id)
    left = Pico(found.left + amount)
    assert left >= 0, "nobody takes from a grant what it does not have"
    kept = (grant._replace(left=left) if grant is found else grant for grant in grants)
    return tuple(grant for grant in kept if grant.left), left


def usable(grants: Grants, leased: Mapping[str, int], at: int) -> tuple[tuple[str, Pico], ...]:
    """Return what may be leased now, by grant, in burn order; only positive amounts."""
    free = ((grant.id, grant.left - leased.get(grant.id, 0)) for grant in grants if not grant.is_expired(at))
    return tuple((grant_id, Pico(amount)) for grant_id, amount in free if amount > 0)


def lapsed(grants: Grants, leased: Mapping[str, int], at: int) -> tuple[tuple[Grant, Pico], ...]:
    """Return what has expired of each grant, and is not on any lease."""
    due = ((grant, grant.left - leased.get(grant.id, 0)) for grant in grants if grant.is_expired(at))
    return tuple((grant, Pico(amount)) for grant, amount in due if amount > 0)


def lease_size(available: int, need: int, wished: int) -> Pico:
    """Return how much to lease: what is needed if it is there, and what is wished as far as others can spare it.

    Near zero the share of what is available falls below a request's need, and a lease is just what is needed.
    """
    spared = min(wished, available // LEASE_SHARES)
    return Pico(max(0, min(available, max(need, spared), LEASE_PICO_MAX)))


def slices(free: Sequence[tuple[str, Pico]], size: int) -> tuple[tuple[str, Pico], ...]:
    """Cut a lease of this size from the grants in their order."""
    cut = []
    for grant_id, amount in free:
        part = min(amount, size)
        if part > 0:
            cut.append((grant_id, Pico(part)))
            size -= part
    return tuple(cut)


def to_text(grants: Grants) -> str:
    """Write the grants as every entry keeps them."""
    return json.dumps(grants, separators=(",", ":"))


def from_text(text: str) -> Grants:
    """Read what `to_text` wrote."""
    return tuple(Grant(row[0], Kind(row[1]), *row[2:]) for row in json.loads(text))
