"""Checkpoints and their recovery: whoever deletes a checkpoint writes its event, and nothing is billed twice."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import SECOND_US, Instant
from billing.credit.holds import Part
from billing.ledger import due as dues
from billing.ledger import inflight, migrate, schema
from billing.ledger.charges import Cap, Payment
from billing.ledger.database import Database
from billing.ledger.due import Due
from billing.ledger.inflight import LAPSE_US, Suspect
from billing.money import Pico
from billing.recovery import Recovery
from billing.usage import UsageEvent
from tests.unit.ledger.made import event, quote

NOON = Instant(1_772_366_400_000_000)
SILENT = Instant(NOON + LAPSE_US + 1)
QUOTE = quote()
WORKER = "worker_1"
FIELDS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_pico", "amount_pico")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A ledger that knows one worker."""
    opened = Database(database_url)
    migrate.upgrade(opened)
    with opened.writing() as conn:
        inflight.register(conn, WORKER, "host:1", NOON)
    yield opened
    opened.close()


def made(output: int, **given: Any) -> UsageEvent:
    """A stream's event with so many tokens, at the quote's prices."""
    values = {"input_tokens": 10, "cached_input_tokens": 0, "output_tokens": output, "reasoning_tokens": 0}
    costs = {"cost_pico": 300_000 + output * 120_000, "amount_pico": 390_000 + output * 156_000}
    return event(NOON, **{"price_ref": QUOTE.ref, **values, **costs, **given})


def checkpointed(database: Database, *outputs: int) -> list[Due]:
    """Streams of the worker that have delivered so many tokens each."""
    streams = [Due(inflight.interrupted(made(output)), QUOTE) for output in outputs]
    with database.writing() as conn:
        dues.store_quotes(conn, [QUOTE])
        inflight.write(conn, WORKER, streams)
    return streams


def record(database: Database, due: Due) -> list[Due]:
    """Record as the recorder does; return what was written."""
    with database.writing() as conn:
        found = inflight.resolved(conn, [due])
        dues.append(conn, found, 0, NOON)
    return found


def recover(database: Database) -> None:
    """Take the worker for dead."""
    with database.writing() as conn:
        while inflight.recover(conn, Suspect(WORKER, NOON), 1, SILENT) is not None:
            pass


def final(stream: Due, output: int, **given: Any) -> Due:
    """What the stream came to in the end."""
    return Due(made(output, id=stream.event.id, **given), QUOTE)


def rows(database: Database, table: sa.Table) -> list[Any]:
    """All rows."""
    with database.reading() as conn:
        return list(conn.execute(sa.select(table).order_by(*table.primary_key.columns)))


def total(database: Database) -> dict[str, int]:
    """What the events add up to; the rollups must agree."""
    events, hours = rows(database, schema.usage_events), rows(database, schema.usage_hourly)
    sums = {name: sum(getattr(row, name) for row in events) for name in FIELDS}
    for name in FIELDS[:4]:
        assert sum(getattr(row, name) for row in hours) == sums[name]
    assert sum(row.amount_micro * 10**6 + row.amount_pico for row in hours) == sums["amount_pico"]
    assert sum(row.requests for row in hours) == sum(row.adjusts is None for row in events)
    return sums


def test_the_end_of_a_stream_takes_its_checkpoint_away(database: Database) -> None:
    stream, other = checkpointed(database, 5, 7)
    end = final(stream, 9)
    assert record(database, end) == [end]
    assert [row.id for row in rows(database, schema.inflight)] == [other.event.id]
    assert record(database, end) == [], "a commit whose answer was lost is not repeated"
    assert total(database)["output_tokens"] == 9


def test_a_dead_workers_streams_become_interrupted_once(database: Database) -> None:
    streams = checkpointed(database, 5, 7, 0)
    recover(database)
    recover(database)
    assert {(row.id, row.outcome, row.output_tokens) for row in rows(database, schema.usage_events)} == {
        (stream.event.id, "interrupted", stream.event.output_tokens) for stream in streams
    }
    assert rows(database, schema.inflight) == rows(database, schema.workers) == []
    assert total(database)["output_tokens"] == 12


def test_a_checkpoint_that_came_after_its_event_is_not_billed(database: Database) -> None:
    (stream,) = checkpointed(database, 5)
    end = final(stream, 9)
    record(database, end)
    with database.writing() as conn:
        inflight.write(conn, WORKER, [stream])
    recover(database)
    assert [row.outcome for row in rows(database, schema.usage_events)] == ["completed"]
    assert rows(database, schema.inflight) == []


@pytest.mark.parametrize("output", [9, 5, 3, 0])
def test_a_stream_that_goes_on_after_it_was_billed_is_corrected_once(database: Database, output: int) -> None:
    (stream,) = checkpointed(database, 5)
    recover(database)
    end = final(stream, output)
    for _ in range(3):
        record(database, end)
    assert total(database) == {name: getattr(end.event, name) for name in FIELDS}
    first, *more = rows(database, schema.usage_events)
    corrections = [row for row in (first, *more) if row.adjusts is not None]
    assert len(corrections) == (output != 5)
    assert all((row.adjusts, row.anomaly) == (stream.event.id, "resumed") for row in corrections)
    notes = [(row.event_id, row.adjusts, row.seq) for row in rows(database, schema.adjustments)]
    assert notes == [(row.id, stream.event.id, 1) for row in corrections]


def test_a_worker_that_is_taken_for_dead_again_and_again_is_billed_exactly(database: Database) -> None:
    (stream,) = checkpointed(database, 5)
    recover(database)
    for output in (6, 8):
        with database.writing() as conn:
            inflight.register(conn, WORKER, "host:1", NOON)
            inflight.write(conn, WORKER, [Due(inflight.interrupted(made(output, id=stream.event.id)), QUOTE)])
        recover(database)
        assert total(database)["output_tokens"] == output
    end = final(stream, 7)
    for _ in range(2):
        record(database, end)
    assert total(database) == {name: getattr(end.event, name) for name in FIELDS}
    with database.writing() as conn:
        inflight.register(conn, WORKER, "host:1", NOON)
        inflight.write(conn, WORKER, [stream])
    recover(database)
    assert total(database)["output_tokens"] == 7, "an old checkpoint takes nothing away and adds nothing"


def test_a_prepaid_customers_interrupted_stream_is_never_made_cheaper(database: Database) -> None:
    (stream,) = checkpointed(database, 5)
    recover(database)
    assert record(database, final(stream, 3)._replace(payment=Payment((Part("lease_1", Pico(1)),)))) == []


def test_what_a_correction_costs_lies_where_the_rest_of_the_hold_lay(database: Database) -> None:
    (stream,) = checkpointed(database, 5)
    recover(database)
    end = final(stream, 9)
    before = stream.event.amount_pico
    parts = (Part("lease_1", Pico(before + 4)), Part("lease_2", Pico(end.event.amount_pico - before - 4)))
    with database.writing() as conn:
        (correction,) = inflight.resolved(conn, [end._replace(payment=Payment(parts, caps=(Cap("acme/day", parts),)))])
    last = (Part("lease_1", Pico(4)), parts[1])
    assert correction.payment == Payment(last, caps=(Cap("acme/day", last),))
    assert correction.event.amount_pico == 4 * 156_000


def test_a_worker_that_moved_is_not_dead(database: Database) -> None:
    checkpointed(database, 5)
    with database.writing() as conn:
        assert inflight.suspects(conn, Instant(NOON + LAPSE_US)) == []
        assert inflight.suspects(conn, SILENT) == [Suspect(WORKER, NOON)]
        assert inflight.beat(conn, WORKER, Instant(NOON + 1))
    recover(database)
    assert rows(database, schema.usage_events) == []
    assert len(rows(database, schema.inflight)) == 1


class Steps:
    """A clock that the test moves. On PostgreSQL the server's own counts, which is far ahead of noon."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> Instant:
        return self.at


def test_one_look_is_not_enough_to_take_a_worker_for_dead(database: Database) -> None:
    """After an outage of the database all workers have been silent, and all are alive."""
    clock = Steps()
    recovery = Recovery(database, 1, clock)
    checkpointed(database, 5)
    clock.at = Instant(NOON + 60 * SECOND_US)
    assert recovery.run() == []
    with database.writing() as conn:
        inflight.beat(conn, WORKER, Instant(NOON + 1))
    assert recovery.run() == [], "it moved between the looks"
    clock.at = Instant(NOON + 120 * SECOND_US)
    assert [each.outcome for each in recovery.run()] == ["interrupted"]
    assert recovery.run() == []


def test_workers_that_recover_at_the_same_moment_bill_once(database: Database) -> None:
    """And the recorder of the worker that is not dead after all is a third."""
    for _ in range(5):
        with database.writing() as conn:
            if not inflight.beat(conn, WORKER, NOON):
                inflight.register(conn, WORKER, "host:1", NOON)
        streams = checkpointed(database, *range(20))
        before = len(rows(database, schema.usage_events))
        together = Barrier(3)

        def take(shard: int, together: Barrier = together) -> int:
            together.wait()
            with database.writing() as conn:
                return len(inflight.recover(conn, Suspect(WORKER, NOON), shard, SILENT) or ())

        def end(together: Barrier = together, streams: list[Due] = streams) -> int:
            together.wait()
            return sum(len(record(database, final(stream, 30))) for stream in streams)

        with ThreadPoolExecutor(3) as threads:
            taken = [threads.submit(take, 1), threads.submit(take, 2)]
            ended = threads.submit(end)
        assert sum(each.result() for each in taken) + ended.result() >= len(streams)
        ids = {stream.event.id for stream in streams}
        of_these = [row for row in rows(database, schema.usage_events) if row.id in ids or row.adjusts in ids]
        assert sum(row.output_tokens for row in of_these) == 30 * len(streams)
        assert len(rows(database, schema.usage_events)) == before + len(of_these)
    total(database)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
amounts = st.integers(0, 2**63 - 1)


parts_of = st.lists(st.builds(Part, texts, amounts.map(Pico)), max_size=3).map(tuple)
payments = st.builds(
    Payment, st.none() | parts_of, st.booleans(), st.lists(st.builds(Cap, texts, parts_of), max_size=2).map(tuple)
)


@given(texts, amounts, st.none() | payments)
def test_what_is_due_survives_as_a_text(name: str, amount: int, payment: Payment | None) -> None:
    given = Due(made(3, model=name, amount_pico=amount, first_token_at=None), QUOTE, payment)
    assert dues.from_text(dues.to_text(given)) == given


def test_a_checkpoint_of_the_release_before_budgets_is_read() -> None:
    raw = json.loads(dues.to_text(Due(made(3), QUOTE)))
    del raw["payment"]
    assert dues.from_text(json.dumps(raw | {"credit": None})).payment is None
    assert dues.from_text(json.dumps(raw | {"credit": [["a", 5]]})).payment == Payment((Part("a", Pico(5)),))


def test_a_text_of_a_later_release_is_read_without_what_is_not_known() -> None:
    text = dues.to_text(Due(made(3), QUOTE)).replace('"outcome":', '"colour":"red","outcome":')
    assert dues.from_text(text).event.outcome == "completed"
