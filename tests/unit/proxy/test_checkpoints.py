"""When streams are checkpointed, and what of them is: never more than a second is missing."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from billing.clock import SECOND_US, Instant
from billing.ledger import inflight, migrate, schema
from billing.ledger.database import Database
from billing.ledger.due import Due
from billing.tokens.counting import OutputTally
from billing.tokens.registry import TokenizerRegistry
from billing.tokens.vocabulary import Vocabulary
from billing.usage import CountSource, Usage
from proxy.checkpoints import TICK_S, Checkpoints, Progress
from proxy.meter.steps import Outputs
from proxy.relay.request import Ask
from tests.unit.ledger.made import event, quote

NOON = Instant(1_772_366_400_000_000)
PROMPT = 11
ASK = Ask("/v1/chat/completions", {"model": "qwen3.5-9b"}, "qwen3.5-9b", True, True, Outputs(), None)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@dataclass(eq=False)
class Streamed:
    """A stream as the checkpoints see it; `known` is what its upstream told."""

    request_id: str
    since: Instant
    delivered: OutputTally = field(default_factory=OutputTally)
    known: Usage | None = None
    is_over: bool = False
    asked: int = 0

    def progress(self) -> Progress | None:
        self.asked += 1
        return None if self.is_over else Progress(ASK, self.since, self.known, self.delivered)

    def checkpoint(self, usage: Usage, source: CountSource, at: Instant) -> Due:
        made = event(self.since, id=self.request_id, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
        return Due(inflight.interrupted(made._replace(finished_at=at, count_source=source.value)), quote())


class Prompts:
    """Counts every prompt as the same, and on Qwen's vocabulary."""

    def __init__(self) -> None:
        self._registry = TokenizerRegistry({})
        self.counted = 0

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        self.counted += 1
        asyncio.get_running_loop().call_soon(done, PROMPT)

    def vocabulary(self, model: str) -> Vocabulary:
        return self._registry.vocabulary(model)


@dataclass
class Bench:
    """Checkpoints of one worker, whose time the test moves from tick to tick."""

    database: Database
    prompts: Prompts = field(default_factory=Prompts)
    live: set[Streamed] = field(default_factory=set)
    checkpointed: set[str] = field(default_factory=set)
    ticks: int = 0

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.database, self.prompts, self.live, self.checkpointed, now=lambda: self.now)

    @property
    def now(self) -> Instant:
        return Instant(NOON + int(self.ticks * TICK_S * SECOND_US))

    async def tick(self) -> None:
        self.ticks += 1
        await self.checkpoints.round(self.ticks * TICK_S)

    def rows(self) -> dict[str, tuple[int, int, int]]:
        """Of each checkpoint: when it was made, input and output tokens."""
        table = schema.inflight
        with self.database.reading() as conn:
            query = sa.select(table.c.id, table.c.checkpointed_at, table.c.input_tokens, table.c.output_tokens)
            return {row[0]: (row[1], row[2], row[3]) for row in conn.execute(query)}


def test_what_a_crash_would_lose_is_never_older_than_a_second(database: Database) -> None:
    async def run() -> None:
        bench = Bench(database)
        stream = Streamed("one", NOON)
        bench.live.add(stream)
        delivered = {}
        for tick in range(1, 30):
            stream.delivered.add(0, content=" word")
            delivered[tick] = tick
            await bench.tick()
            rows = bench.rows()
            known = rows["one"][2] if rows else 0
            due = [tokens for at, tokens in delivered.items() if (tick - at) * TICK_S >= 1]
            assert known >= max(due, default=0)
        assert rows["one"][1] == PROMPT
        assert bench.prompts.counted == 1, "a prompt is counted once"
        await bench.checkpoints.close()
        assert bench.rows() == {}

    asyncio.run(run())


def test_what_the_upstream_counts_is_not_counted_again(database: Database) -> None:
    async def run() -> None:
        bench = Bench(database)
        stream = Streamed("one", NOON, known=Usage(70, 3))
        bench.live.add(stream)
        for _ in range(3):
            await bench.tick()
        assert bench.rows()["one"][1:] == (70, 3)
        assert bench.prompts.counted == 0
        await bench.checkpoints.close()

    asyncio.run(run())


def test_a_stream_that_is_over_within_half_a_second_is_never_checkpointed(database: Database) -> None:
    async def run() -> None:
        bench = Bench(database)
        stream = Streamed("one", NOON)
        stream.delivered.add(0, content="Hello")
        bench.live.add(stream)
        await bench.tick()
        bench.live.discard(stream)
        for _ in range(5):
            await bench.tick()
        assert (stream.asked, bench.checkpointed, bench.rows()) == (1, set(), {})
        assert bench.prompts.counted == 0
        with database.reading() as conn:
            assert inflight.suspects(conn, Instant(NOON + 10**12)) == [], "not even a sign of life was written"
        await bench.checkpoints.close()

    asyncio.run(run())


def test_a_stream_that_came_to_nothing_leaves_no_checkpoint(database: Database) -> None:
    async def run() -> None:
        bench = Bench(database)
        stream = Streamed("one", NOON)
        stream.delivered.add(0, content="Hello")
        bench.live.add(stream)
        for _ in range(3):
            await bench.tick()
        assert set(bench.rows()) == bench.checkpointed == {"one"}
        bench.live.discard(stream)
        await bench.tick()
        assert set(bench.rows()) == {"one"}, "as long as it may still be recorded its checkpoint stays"
        stream.is_over = True
        await bench.tick()
        assert (bench.rows(), bench.checkpointed) == ({}, set())
        await bench.checkpoints.close()

    asyncio.run(run())


def test_a_worker_that_was_taken_for_dead_gives_itself_a_new_name_and_goes_on(database: Database) -> None:
    async def run() -> None:
        bench = Bench(database)
        stream = Streamed("one", NOON)
        stream.delivered.add(0, content="Hello")
        bench.live.add(stream)
        for _ in range(3):
            await bench.tick()
        with database.writing() as conn:
            conn.execute(sa.delete(schema.inflight))
            conn.execute(sa.delete(schema.workers))
        stream.delivered.add(0, content=" world")
        for _ in range(2):
            await bench.tick()
        assert bench.rows()["one"][2] == 2
        await bench.checkpoints.close()

    asyncio.run(run())
