"""A spool is emptied though requests go on: the ledger gets the last of it, and then new events again."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import clock
from billing.ledger import migrate, schema
from billing.ledger.database import Connection, Database
from billing.ledger.due import Due
from billing.ledger.spool import Spool
from proxy.settle import Entry, Recorder
from proxy.spooling import Drainer
from tests.unit.ledger.made import event, quote

LIMIT_S = 60
CLIENTS = 40
QUOTE = quote()


class FarAway(Database):
    """A ledger to which it is longer than to the spool."""

    @contextmanager
    def writing(self, lock_wait_s: int | None = None) -> Iterator[Connection]:
        with super().writing(lock_wait_s) as connection:
            yield connection
            time.sleep(0.05)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = FarAway(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def due() -> Due:
    return Due(event(clock.now(), price_ref=QUOTE.ref), QUOTE)


def test_a_spool_is_emptied_though_each_answer_is_followed_by_a_request(database: Database, tmp_path: Path) -> None:
    """As long as it holds anything new events go there, too: without a last hand-over it would never be empty."""
    spool = Spool.new(tmp_path / "spool")
    spool.append([due() for _ in range(3)])
    drainer = Drainer(database, spool, 1)

    async def run() -> int:
        loop = asyncio.get_running_loop()
        recorder = Recorder(database, loop, 1, spool)
        is_over, refused = False, 0

        def submit() -> None:
            new = due()
            recorder.submit(Entry(new.event, new.quote, answered))

        def answered(is_durable: bool) -> None:
            nonlocal refused
            refused += not is_durable
            if not is_over:
                submit()

        recorder.start()
        for _ in range(CLIENTS):
            submit()
        drainer.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                while spool.rows:
                    await asyncio.sleep(0.001)
                before = recorder.recorded
                while recorder.recorded < before + CLIENTS:
                    await asyncio.sleep(0.001)
        finally:
            is_over = True
            await recorder.close()
            drainer.stop()
        assert refused == 0
        return recorder.recorded

    recorded = asyncio.run(run())
    with database.reading() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(schema.usage_events)).scalar_one() == recorded + 3
