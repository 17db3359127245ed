"""The recorder in a long outage without a spool: what waits is bounded, nothing is released, and it goes on after."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import clock
from billing.ledger import migrate, schema
from billing.ledger.database import Database
from proxy import settle
from proxy.settle import Entry, Recorder
from tests.unit.ledger.made import event, quote

LIMIT_S = 30
QUEUE_MAX, BATCH_MAX = 20, 5
GONE = "postgresql://nobody@127.0.0.1:1/nothing"
QUOTE = quote()


def test_without_database_and_spool_what_waits_is_bounded_and_nothing_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "RECORD_QUEUE_ROWS_MAX", QUEUE_MAX)
    monkeypatch.setattr(settle, "RECORD_BATCH_ROWS_MAX", BATCH_MAX)
    monkeypatch.setattr(settle, "RETRY_FOR_S", 0.5)
    gone, ledger = Database(GONE, wait_s=1), Database(f"sqlite:///{tmp_path}/weir.db")
    migrate.upgrade(ledger)
    answers: list[bool] = []

    async def run() -> None:
        recorder = Recorder(gone, asyncio.get_running_loop(), 1, None)

        def submit() -> None:
            recorder.submit(Entry(event(clock.now(), price_ref=QUOTE.ref), QUOTE, answers.append))

        recorder.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                admitted = 0
                while not recorder.is_full:  # as requests are admitted, which is asked before each
                    submit()
                    admitted += 1
                assert QUEUE_MAX <= admitted <= QUEUE_MAX + BATCH_MAX
                assert answers == [], "nobody gets last bytes that are not recorded"
                while len(answers) < admitted:
                    await asyncio.sleep(0.001)
                assert recorder.is_failing, "new requests are refused"
                assert not recorder.is_full, "and none of the old ones is kept"
                assert not any(answers)
                recorder._database = ledger  # it is back
                while recorder.is_failing:
                    await asyncio.sleep(0.001)
                submit()
                while len(answers) == admitted:
                    await asyncio.sleep(0.001)
        finally:
            await recorder.close()

    asyncio.run(run())
    assert answers[-1] is True
    with ledger.reading() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(schema.usage_events)).scalar_one() == 1
    gone.close()
    ledger.close()
