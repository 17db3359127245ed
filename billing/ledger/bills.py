"""What an invoice bills, told from the ledger: a period's usage, its batches, and the requests in a batch.

Read by commands only. Money is summed in its two columns and joined in Python; lists have a limit and a stable order.
"""

import json
from dataclasses import dataclass

import sqlalchemy as sa

from billing.clock import DAY_US, Instant, hour_start, to_datetime
from billing.ledger import outbox, schema
from billing.ledger.outbox import DELIVERED, Batch
from billing.ledger.partitions import bound
from billing.money import Pico, join
from billing.usage import UsageEvent

_BATCHES, _HOURLY, _EVENTS = schema.meter_batches, schema.usage_hourly, schema.usage_events


@dataclass(frozen=True, slots=True)
class Period:
    """What a customer used in [start, end), and where it is: paid by credit, in units sent or not, in no batch yet.

    `usage` = `credit` + `sent` + `unsent` + `unassigned` + `carry_out` − `carry_in`, each in picounits. In tokens mode
    the units are of several meters, and their sums say little.
    """

    usage: Pico
    credit: Pico
    unassigned: Pico
    units_sent: int
    units_unsent: int
    sent: Pico
    unsent: Pico
    carry_in: Pico
    carry_out: Pico


def period(conn: sa.Connection, customer_id: str, start: Instant, end: Instant) -> Period:
    """Sum up a customer's usage in [start, end), from the hour on in which it starts: only a first period can start
    within an hour, and usage before it in that hour is billed by it.
    """
    table, start = _HOURLY, hour_start(start)
    columns = [table.c[f"{name}_{part}"] for name in ("amount", "credit", "assigned") for part in ("micro", "pico")]
    query = sa.select(*(sa.func.sum(column) for column in columns)).where(
        table.c.customer_id == customer_id, table.c.window_start >= start, table.c.window_start < end
    )
    sums = [int(value or 0) for value in conn.execute(query).one()]
    usage, credit, assigned = (join(sums[at], sums[at + 1]) for at in (0, 2, 4))
    found = batches_in(conn, customer_id, start, end)
    return Period(
        usage=usage,
        credit=credit,
        unassigned=Pico(usage - assigned),
        units_sent=sum(batch.units for batch in found if batch.state in DELIVERED),
        units_unsent=sum(batch.units for batch in found if batch.state not in DELIVERED),
        sent=Pico(sum(worth(batch) for batch in found if batch.state in DELIVERED)),
        unsent=Pico(sum(worth(batch) for batch in found if batch.state not in DELIVERED)),
        carry_in=Pico(found[0].carry_in_pico if found else 0),
        carry_out=Pico(found[-1].carry_pico if found else 0),
    )


def batches_in(conn: sa.Connection, customer_id: str, start: Instant, end: Instant) -> list[Batch]:
    """Return a customer's batches of the hours in [start, end), the one of its start too, as they were made."""
    start = hour_start(start)
    query = sa.select(_BATCHES).where(
        _BATCHES.c.customer_id == customer_id, _BATCHES.c.window_start >= start, _BATCHES.c.window_start < end
    )
    return [outbox.of_row(row) for row in conn.execute(query.order_by(_BATCHES.c.seq)).mappings()]


def find_batch(conn: sa.Connection, batch_id: str) -> Batch | None:
    """Return the batch with this id; an identifier at Stripe is one, perhaps with a number behind a dot."""
    query = sa.select(_BATCHES).where(_BATCHES.c.id == batch_id.partition(".")[0])
    row = conn.execute(query).mappings().one_or_none()
    return None if row is None else outbox.of_row(row)


def requests_in(conn: sa.Connection, batch: Batch, rows_max: int) -> list[UsageEvent]:
    """Return the requests whose amounts a batch holds, oldest first, at most `rows_max`.

    An event's id is made at its admission, at most a day before its hour; so the months before are not looked at.
    """
    covers = {tuple(each) if len(each) == 5 else (*each, batch.window_start) for each in json.loads(batch.covers)}
    hours = sorted({cover[4] for cover in covers})
    if not hours:
        return []
    columns = [_EVENTS.c[name] for name in UsageEvent._fields]
    query = sa.select(*columns, _EVENTS.c.shard, _EVENTS.c.window_seq).where(
        _EVENTS.c.id >= bound(to_datetime(Instant(hours[0] - DAY_US))),
        _EVENTS.c.customer_id == batch.customer_id,
        _EVENTS.c.window_start.in_(hours),
    )
    found: list[UsageEvent] = []
    for row in conn.execute(query.order_by(_EVENTS.c.id)).mappings():
        if (row["api_key_id"], row["model"], row["shard"], row["window_seq"], row["window_start"]) in covers:
            found.append(UsageEvent(**{name: row[name] for name in UsageEvent._fields}))
            if len(found) == rows_max:
                break
    return found


def worth(batch: Batch) -> Pico:
    """Return what a batch's units come to."""
    return Pico(batch.units * batch.unit_pico)
