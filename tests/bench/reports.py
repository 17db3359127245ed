"""`python -m tests.bench.reports`: how long reports take with few and with many events, on SQLite and PostgreSQL.

Both ledgers have the same week of 20 customers with two models each, so the same rollups; only how many events are in
them differs. Events are made by the database itself, in bulk. Each figure is the median of several runs of the
report's own code, within this process, in milliseconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from billing.clock import HOUR_US
from billing.ledger import migrate, schema
from billing.ledger.database import Database
from billing.ledger.totals import Selection
from billing.reports import usage
from tests.support.postgres import PostgresServer
from tests.tables import at

CUSTOMERS, MODELS, HOURS = 20, 2, 7 * 24
CELLS = CUSTOMERS * MODELS * HOURS
RUNS = 7
SINCE = int(at("2026-03-01"))
AMOUNT, COST = 117_000_000, 90_000_000
GROUPS = (("customer", "model"), ("day",), ("hour",), ("plan", "month"), ("tag", "customer", "day"))
CHUNK = 500_000


def main() -> int:
    """Fill, report, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reports", description=__doc__)
    parser.add_argument("--events", default="10000,10000000", help="how many events, of which the first is compared")
    parser.add_argument("--engines", default="sqlite,postgresql", help="on which databases")
    options = parser.parse_args()
    sizes = [int(size) for size in options.events.split(",")]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for engine in options.engines.split(","):
        results = {size: _measured(engine, size, console) for size in sizes}
        console.print(_table(engine, results))
    return 0


def _measured(engine: str, size: int, console: Console) -> dict[str, float]:
    with _database(engine) as database:
        began = time.monotonic()
        _fill(database, size)
        console.print(f"{engine}: {size:,} events made in {round(time.monotonic() - began)} s")
        return {",".join(by): _milliseconds(database, by) for by in GROUPS}


@contextmanager
def _database(engine: str) -> Iterator[Database]:
    if engine == "sqlite":
        with tempfile.TemporaryDirectory(prefix="weir-bench-") as home:
            yield from _opened(f"sqlite:///{Path(home, 'weir.db')}")
    else:
        with PostgresServer() as server:
            yield from _opened(server.create_database())


def _opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()


def _fill(database: Database, size: int) -> None:
    """Make events, a few thousand to each rollup, and the rollups that are their sums."""
    cells = "n % 20 AS customer, n / 20 % 2 AS model, n % 6720 / 40 AS hour"
    events = schema.usage_events
    given = {
        "id": _ID[database.is_sqlite],
        "customer_id": "'cust_' || customer",
        "api_key_id": "'key_' || customer",
        "model": "'model_' || model",
        "upstream": "'local'",
        "upstream_model": "'m'",
        "endpoint": "'/v1/chat/completions'",
        "outcome": "'completed'",
        "count_source": "'upstream'",
        "http_status": "200",
        "input_tokens": "1000",
        "output_tokens": "500",
        "cost_pico": str(COST),
        "amount_pico": str(AMOUNT),
        "price_ref": "'quote'",
        **dict.fromkeys(("started_at", "finished_at", "window_start"), f"{SINCE} + hour * {HOUR_US}"),
    }
    zeros = {column.name: "0" for column in events.c if not column.nullable and column.name not in given}
    columns = {**given, **zeros}
    for first in range(0, size, CHUNK):
        numbers = _NUMBERS[database.is_sqlite].format(first=first, last=min(first + CHUNK, size) - 1)
        with database.writing() as conn:
            conn.execute(
                sa.text(
                    f"INSERT INTO usage_events ({', '.join(columns)}) SELECT {', '.join(columns.values())}"
                    f" FROM (SELECT n, {cells} FROM ({numbers}) AS numbers) AS cells"
                )
            )
    sums = {"requests": "count(*)", "input_tokens": "sum(input_tokens)", "output_tokens": "sum(output_tokens)"}
    for name in ("cost", "amount"):
        sums |= {f"{name}_micro": f"sum({name}_pico / 1000000)", f"{name}_pico": f"sum({name}_pico % 1000000)"}
    keys = ("customer_id", "window_start", "api_key_id", "model", "shard")
    hourly = schema.usage_hourly.c
    rest = [
        column.name
        for column in hourly
        if column.name not in {*keys, *sums} and column.computed is None and not column.nullable
    ]
    values = ", ".join([*keys, *sums.values(), *("0" for _ in rest)])
    insert = f"INSERT INTO usage_hourly ({', '.join([*keys, *sums, *rest])}) SELECT {values}"
    with database.writing() as conn:
        conn.execute(sa.text(f"{insert} FROM usage_events GROUP BY {', '.join(keys)}"))
        conn.execute(sa.text("ANALYZE"))
        found = conn.execute(sa.select(sa.func.sum(hourly.requests))).scalar_one()
    assert found == size, "the rollups are the sums of the events"
    if database.is_sqlite:  # as it does by itself in the long run
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


_HEX = "%08x-%04x-7000-8000-%012x"
_MS = SINCE // 1_000
_ID = {
    True: f"printf('{_HEX}', ({_MS} + n / 20) / 65536, ({_MS} + n / 20) % 65536, n)",
    False: f"lpad(to_hex(({_MS} + n / 20) / 65536), 8, '0') || '-' || lpad(to_hex(({_MS} + n / 20) % 65536), 4, '0')"
    " || '-7000-8000-' || lpad(to_hex(n), 12, '0')",
}
_NUMBERS = {
    True: "WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s",
    False: "SELECT n FROM generate_series({first}::bigint, {last}::bigint) AS n",
}


def _milliseconds(database: Database, by: tuple[str, ...]) -> float:
    def run() -> None:
        with database.reading() as conn:
            assert usage.load(conn, Selection(), by, ZoneInfo("Europe/Berlin")), "there is usage"

    return statistics.median(_timed(run) for _ in range(RUNS))


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1_000


def _table(engine: str, results: dict[int, dict[str, float]]) -> Table:
    table = Table(title=f"reports on {engine}, ms", title_justify="left", box=None)
    table.add_column("by")
    for size in results:
        table.add_column(f"{size:,} events", justify="right")
    for by in next(iter(results.values())):
        table.add_row(by, *(f"{figures[by]:.1f}" for figures in results.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
