"""Credit that is taken back: its payment was refunded or is disputed.

Invariant: what is taken back is taken once and whole. First from the credit that the payment gave, then from the
customer's others in burn order; what nobody has left, because it was spent or running requests hold it, is owed. So the
balance may fall below zero, and then nothing is free until a payment or a returned hold covers it (`credit.settle`).
"""

import sqlalchemy as sa

from billing.clock import Instant
from billing.credit import account
from billing.credit.account import PRIORITY_DEFAULT, Grant, Kind
from billing.ledger import audit, credit, leases
from billing.money import Pico, format_amount


def take_back(
    conn: sa.Connection, customer_id: str, grant_id: str, amount: Pico, kind: Kind, reason: str, at: Instant, actor: str
) -> None:
    """Take an amount back that a payment gave as `grant_id`; the caller sees to it that this happens once."""
    assert amount > 0, "nothing is taken back of nothing"
    before = credit.lock(conn, customer_id)
    free = account.usable(before.grants, credit.leased(conn, customer_id), at)
    own_first = sorted(free, key=lambda part: part[0] != grant_id)  # A stable sort: the others stay in burn order.
    rest = int(amount)
    for payer_id, part in account.slices(own_first, rest):
        payer = next(held for held in before.grants if held.id == payer_id)
        before = credit.write(conn, before, kind, payer, Pico(-part), at, reason=reason)
        rest -= part
    if rest:
        spent = Grant(grant_id, Kind.TOPUP, PRIORITY_DEFAULT, None, at, Pico(0))
        named = next((held for held in before.grants if held.id == grant_id), spent)
        owed = Pico(before.owed + rest)
        before = credit.write(conn, before, kind, named, Pico(0), at, owed=owed, reason=reason)
        leases.recall_all(conn, customer_id, at)
    assert before.currency is not None, "what is taken back was given"
    details = {"amount": format_amount(amount, before.currency), "owed": format_amount(before.owed, before.currency)}
    action = f"credit.{kind.value}"
    audit.record(conn, at=at, actor=actor, action=action, subject=customer_id, details=details | {"id": grant_id})
