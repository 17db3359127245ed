"""A usage event that is not in the ledger yet, and all that its recording needs: also as a text that outlives us.

The text is what a checkpoint and the spool keep. It holds counts, ids and prices, and never a prompt or an answer
(I10). Fields that a later release added and this one does not know are left out when it is read; those that it lacks
have their defaults.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from billing.clock import Instant
from billing.credit.holds import Part
from billing.ledger import charges, events, plan_counts, schema, versions
from billing.ledger.charges import Cap, Charge, Payment
from billing.money import Pico
from billing.pricing.quote import UNITS, Quote, UnitPrices
from billing.usage import UsageEvent


class Due(NamedTuple):
    """An event, the quote that priced it, and what pays for it; None where there is no credit and no budget."""

    event: UsageEvent
    quote: Quote
    payment: Payment | None = None


def append(conn: sa.Connection, dues: Sequence[Due], shard: int, at: Instant) -> Sequence[UsageEvent]:
    """Record what is due, and charge it to credit and budgets; return what had to be written off.

    A correction of an interrupted event is noted among the adjustments, like any other.
    """
    rows = [due.event for due in dues]
    _note(conn, [event for event in rows if event.adjusts is not None], at)
    charged = [Charge(due.event, *due.payment) for due in dues if due.payment is not None]
    if charged:
        return charges.append(conn, rows, charged, shard, at)
    if rows:
        events.append(conn, rows, shard)
    return ()


def _note(conn: sa.Connection, corrections: Sequence[UsageEvent], at: Instant) -> None:
    table = schema.adjustments
    for event in corrections:
        before = sa.select(sa.func.coalesce(sa.func.max(table.c.seq), 0)).where(table.c.adjusts == event.adjusts)
        row = {
            "event_id": event.id,
            "adjusts": event.adjusts,
            "seq": conn.execute(before).scalar_one() + 1,
            "run_key": event.id,
            "change": event.anomaly,
            "reason": "its worker was taken for dead, and went on",
            "actor": "gateway",
            "at": at,
            "credit_pico": 0,
        }
        conn.execute(sa.insert(table), row)
    plan_counts.touch(conn, corrections)


def store_quotes(conn: sa.Connection, quotes: Iterable[Quote]) -> None:
    """Keep the quotes, in the order of their refs, so that two workers can not deadlock."""
    by_ref = {quote.ref: quote for quote in quotes}
    for ref in sorted(by_ref):
        versions.store_quote(conn, by_ref[ref])


def to_text(due: Due) -> str:
    """Write it as JSON; whole numbers of up to 63 bits are exact."""
    fields_ = {"event": due.event._asdict(), "quote": asdict(due.quote), "payment": due.payment}
    return orjson.dumps(fields_, default=tuple).decode()


def from_text(text: str) -> Due:
    """Read what `to_text` wrote."""
    raw = orjson.loads(text)
    quote = _known(raw["quote"], [field.name for field in fields(Quote)])
    prices = {name: UnitPrices(**_known(quote[name], UNITS)) for name in ("cost", "price")}
    return Due(
        event=UsageEvent(**_known(raw["event"], UsageEvent._fields)),
        quote=Quote(**{**quote, **prices}),
        payment=_payment(raw["payment"] if "payment" in raw else _before_budgets(raw["credit"])),
    )


def _payment(raw: Sequence[Any] | None) -> Payment | None:
    if raw is None:
        return None
    credit, is_prepaid, caps, zone = raw
    budgets = tuple(Cap(budget_id, _parts(parts)) for budget_id, parts in caps)
    return Payment(None if credit is None else _parts(credit), is_prepaid, budgets, zone)


def _before_budgets(credit: list[Any] | None) -> tuple[object, ...] | None:
    """Return what the release before budgets wrote, as a payment: parts of credit, or nothing."""
    return None if credit is None else (credit, True, (), "UTC")


def _parts(raw: Iterable[tuple[str, int]]) -> tuple[Part, ...]:
    return tuple(Part(lease_id, Pico(amount)) for lease_id, amount in raw)


def _known(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
