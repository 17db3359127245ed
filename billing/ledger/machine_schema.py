"""The tables of own hardware: machines, what power costs and what they drew, and for whom each upstream worked.

`machines` and `power_tariffs` are dated versions that are never changed; `power_samples` are facts that were measured.
`upstream_hourly` is the sum of the events by upstream, as `usage_hourly` is by customer: it grows in the transaction
that inserts them, so that a day's cost reads its hours and no event. Times are microseconds of the upstream's busy
time, shared fairly (`proxy/relay/busy.py`); power is in milliwatts.
"""

from sqlalchemy import CheckConstraint, Column, Integer, Table, Text

from billing.ledger.columns import BIG, ID, metadata

upstream_hourly = Table(
    "upstream_hourly",
    metadata,
    Column("hour", BIG, primary_key=True, autoincrement=False),
    Column("upstream", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("requests", BIG, nullable=False),
    Column("input_tokens", BIG, nullable=False),
    Column("cached_input_tokens", BIG, nullable=False),
    Column("output_tokens", BIG, nullable=False),
    Column("prompt_us", BIG, nullable=False),
    Column("generation_us", BIG, nullable=False),
    Column("cost_micro", BIG, nullable=False),
    Column("cost_pico", BIG, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

machines = Table(
    "machines",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("capital", Text, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("life_hours", BIG, nullable=False),
    Column("bought_at", BIG, nullable=False),
    Column("idle_milliwatt", BIG, nullable=False),
    Column("busy_milliwatt", BIG, nullable=False),
    Column("upstreams", Text, nullable=False),
    Column("is_removed", Integer, nullable=False),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    CheckConstraint("capital IN ('owned', 'rented')", name="known_capital"),
    CheckConstraint("amount_pico >= 0 AND idle_milliwatt >= 0 AND busy_milliwatt >= 0", name="not_negative"),
    CheckConstraint("capital = 'rented' OR life_hours > 0", name="lives"),
    CheckConstraint("is_removed IN (0, 1)", name="is_removed_or_not"),
    sqlite_strict=True,
)

power_tariffs = Table(
    "power_tariffs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("machine", Text),
    Column("prices", Text, nullable=False),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    sqlite_strict=True,
)

power_samples = Table(
    "power_samples",
    metadata,
    Column("machine", Text, primary_key=True),
    Column("at", BIG, primary_key=True, autoincrement=False),
    Column("milliwatt", BIG, nullable=False),
    CheckConstraint("milliwatt >= 0", name="not_negative"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
