"""Usage events and their hourly rollups, written together: Σ events = Σ rollups by construction.

A rollup row (customer, window, key, model, shard) grows in the transaction that inserts the events it counts, so
no job can lag, skip or count twice, and reports never read events. A row's `window_seq` grows each time that the
outbox assigns it to a batch; each event keeps the number it found, which is how `trace` finds its batch exactly.

`upstream_hourly` sums the same events by hour, upstream and model: tokens, cost, and for how long the upstream worked
for them, for whoever spreads a machine's cost (`billing/pricing/hardware.py`).

`shard` is the writing worker's, and the quote's (`shard_of`): workers never wait for each other's row locks, and a row
holds usage of one quote, so that its tokens times the quote's prices are its amount. `price_ref` names that quote.
Within a transaction rows are taken in key order, one table after the other, so that two writers can not deadlock.

The statements go to the driver's cursor as they are, a tuple per row: SQLAlchemy Core costs 30 µs a row here, this 3.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from zlib import crc32

import sqlalchemy as sa

from billing.clock import HOUR_US
from billing.ledger import schema
from billing.ledger.database import Cursor, driver_cursor
from billing.usage import UsageEvent

RollupKey = tuple[str, int, str, str, int]

_SUMS = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_micro",
    "cost_pico",
    "amount_micro",
    "amount_pico",
    "credit_micro",
    "credit_pico",
    "assigned_micro",
    "assigned_pico",
    "image_input_tokens",
    "audio_input_tokens",
)
_KEY = ("customer_id", "window_start", "api_key_id", "model", "shard")
_SPLIT = tuple((at - 1, at) for at, name in enumerate(_SUMS) if name.endswith("_pico"))
"""Where the two halves of each amount stand among the sums."""

_WORK_SUMS = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "prompt_us",
    "generation_us",
    "cost_micro",
    "cost_pico",
)
_WORK_KEY = ("hour", "upstream", "model", "shard")

WORKER_SHARDS = 64
_QUOTE_SHARDS = 1 << 24
_PICO_PER_MICRO = 1_000_000
_NO_CREDIT: Mapping[str, int] = MappingProxyType({})


def append(
    conn: sa.Connection, events: Sequence[UsageEvent], shard: int, credit: Mapping[str, int] = _NO_CREDIT
) -> None:
    """Insert the events and add them to their rollups. Raises IntegrityError if an id is already there.

    `credit` says how much of an event, by its id, prepaid credit pays for (`billing/ledger/charges.py`). That part
    counts as assigned from the start, so that no batch can claim it and Stripe is never asked for it a second time.
    """
    with driver_cursor(conn) as cursor:
        append_on(cursor, events, shard, credit, is_sqlite=conn.dialect.name == "sqlite")


def append_on(
    cursor: Cursor,
    events: Sequence[UsageEvent],
    shard: int,
    credit: Mapping[str, int] = _NO_CREDIT,
    *,
    is_sqlite: bool,
) -> None:
    """Do what `append` does on the driver's own cursor, inside a transaction. Raises the driver's errors."""
    insert_sql, upsert_sql, work_sql = _statements("?" if is_sqlite else "%s")
    sequences: dict[RollupKey, int] = {}
    totals, refs = _summed(events, shard, credit)
    for key, sums in sorted(totals.items()):
        cursor.execute(upsert_sql, (*key, *sums, refs[key]))
        row = cursor.fetchone()
        assert row is not None, "it returns the row that grew"
        sequences[key] = row[0]
    rows = []
    for event in events:
        own = shard_of(shard, event.price_ref)
        key = (event.customer_id, event.window_start, event.api_key_id, event.model, own)
        rows.append((*event, own, sequences[key]))
    cursor.executemany(insert_sql, rows)
    for work in sorted(_worked(events, shard)):
        cursor.execute(work_sql, work)


def credit(conn: sa.Connection, event: UsageEvent, shard: int, amount: int) -> None:
    """Count so much more of an event, appended in this transaction, as paid for by credit."""
    if amount == 0:
        return
    table = schema.usage_hourly
    micro, pico = divmod(amount, _PICO_PER_MICRO)
    grown = {"credit_micro": micro, "credit_pico": pico, "assigned_micro": micro, "assigned_pico": pico}
    own = shard_of(shard, event.price_ref)
    key = (event.customer_id, event.window_start, event.api_key_id, event.model, own)
    query = sa.update(table).where(*(table.c[name] == value for name, value in zip(_KEY, key, strict=True)))
    conn.execute(query.values({name: table.c[name] + value for name, value in grown.items()}))


def absent(conn: sa.Connection, events: Sequence[UsageEvent]) -> list[UsageEvent]:
    """Return those events whose ids are not recorded yet: for a commit whose answer was lost."""
    table = schema.usage_events
    found = conn.execute(sa.select(table.c.id).where(table.c.id.in_([event.id for event in events])))
    recorded = set(found.scalars())
    return [event for event in events if event.id not in recorded]


@lru_cache(maxsize=4096)
def shard_of(worker: int, price_ref: str) -> int:
    """Return the shard of a worker's usage at a quote: the worker's below, 24 bits of the quote's name above.

    Should two quotes of a customer's hour share their bits, the row holds both, and its amount is not the tokens times
    the prices of the quote that it names: whoever splits it by price has to check that.
    """
    return worker % WORKER_SHARDS + WORKER_SHARDS * (crc32(price_ref.encode()) % _QUOTE_SHARDS)


def _summed(
    events: Sequence[UsageEvent], shard: int, credit: Mapping[str, int]
) -> tuple[dict[RollupKey, list[int]], dict[RollupKey, str]]:
    """Return the sums of each rollup, and the quote of its first event."""
    totals: dict[RollupKey, list[int]] = {}
    refs: dict[RollupKey, str] = {}
    for event in events:  # whole amounts first: they are split once for each rollup, and not once for each event
        own = shard_of(shard, event.price_ref)
        key = (event.customer_id, event.window_start, event.api_key_id, event.model, own)
        sums = totals.get(key)
        if sums is None:
            sums = totals[key] = [0] * len(_SUMS)
            refs[key] = event.price_ref
        sums[0] += event.adjusts is None  # a correction is no request
        sums[1] += event.input_tokens
        sums[2] += event.cached_input_tokens
        sums[3] += event.output_tokens
        sums[4] += event.reasoning_tokens
        sums[6] += event.cost_pico
        sums[8] += event.amount_pico
        sums[13] += event.image_input_tokens
        sums[14] += event.audio_input_tokens
        if credit and event.id in credit:
            sums[10] += credit[event.id]
            sums[12] += credit[event.id]
    for sums in totals.values():
        for micro, pico in _SPLIT:
            sums[micro], sums[pico] = divmod(sums[pico], _PICO_PER_MICRO)
    return totals, refs


def _worked(events: Sequence[UsageEvent], shard: int) -> list[tuple[object, ...]]:
    """Sum up what each upstream did in each hour for each model, as rows of `upstream_hourly`."""
    totals: dict[tuple[int, str, str], list[int]] = {}
    for event in events:
        key = (event.window_start, event.upstream, event.model)
        sums = totals.get(key)
        if sums is None:
            sums = totals[key] = [0] * (len(_WORK_SUMS) - 1)
        sums[0] += event.adjusts is None
        sums[1] += event.input_tokens
        sums[2] += event.cached_input_tokens
        sums[3] += event.output_tokens
        sums[4] += event.prompt_us
        sums[5] += event.generation_us
        sums[6] += event.cost_pico
    return [
        (
            window - window % HOUR_US,
            upstream,
            model,
            shard % WORKER_SHARDS,
            *sums[:-1],
            *divmod(sums[-1], _PICO_PER_MICRO),
        )
        for (window, upstream, model), sums in totals.items()
    ]


@lru_cache
def _statements(mark: str) -> tuple[str, str, str]:
    events = (*UsageEvent._fields, "shard", "window_seq")
    insert = (
        f"INSERT INTO usage_events ({', '.join(events)}) VALUES ({', '.join([mark] * len(events))})"
        " /* weir:events.insert */"
    )
    columns = (*_KEY, *_SUMS, "price_ref")
    sums = ", ".join(f"{name} = usage_hourly.{name} + excluded.{name}" for name in _SUMS)
    work_columns = (*_WORK_KEY, *_WORK_SUMS)
    work_sums = ", ".join(f"{name} = upstream_hourly.{name} + excluded.{name}" for name in _WORK_SUMS)
    work = (
        f"INSERT INTO upstream_hourly ({', '.join(work_columns)}) VALUES ({', '.join([mark] * len(work_columns))})"
        f" ON CONFLICT ({', '.join(_WORK_KEY)}) DO UPDATE SET {work_sums} /* weir:events.work */"
    )
    upsert = (
        f"INSERT INTO usage_hourly ({', '.join(columns)}, window_seq) VALUES ({', '.join([mark] * len(columns))}, 0)"
        f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {sums}"
        " RETURNING window_seq /* weir:events.rollup */"
    )
    return insert, upsert, work
