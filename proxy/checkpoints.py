"""Checkpoints of this worker's streams, in one transaction every second, so that a crash loses no more (I3).

On the event loop: each stream that has delivered something is asked what, and whether the upstream counted it. On a
thread: what was not counted is counted from where the last count ended, and all checkpoints that changed are written,
with a sign of life, in one transaction (`billing/ledger/inflight.py`). No text leaves this process.

A stream that is over within half a second of its first token is never checkpointed, and costs nothing. Its prompt is
counted once, with its first checkpoint. A checkpoint is deleted with its event by the recorder, which is told by
`checkpointed` that there may be one; those of streams that came to nothing are dropped here. While the ledger is away
the spool keeps the checkpoints.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from billing import clock, ids
from billing.clock import SECOND_US, Clock, Instant
from billing.errors import DatabaseAwayError
from billing.ledger import due as dues
from billing.ledger import inflight, leases
from billing.ledger.database import Connection, Database, DatabaseError
from billing.ledger.due import Due
from billing.ledger.spool import Spool, SpoolError
from billing.tokens.counting import OutputTally
from billing.tokens.vocabulary import Vocabulary
from billing.usage import CountSource, Usage
from proxy.relay.request import Ask

TICK_S = 0.4
FIRST_AFTER_S = 0.5
AGAIN_AFTER_S = 0.75
"""With a tick (for the first) and a commit that is less than a second."""

PROMPTS_WAIT_S = 0.1
"""How long the round of a stream's first checkpoint waits for the count of its prompt."""

COUNTING_PAUSE = 10
"""A stream that takes long to count (75 ms of CPU: 100,000 tokens a second) rests ten times as long."""

WARM_AFTER_S = 1.0
"""When vocabularies are read: not while the gateway starts."""

STREAMS_AT_ONCE = 16
"""How many streams are asked before the event loop does something else: folding a second's text takes some 200 µs."""

log = logging.getLogger("weir.checkpoints")


class Progress(NamedTuple):
    """What a stream has delivered since its first token: what the upstream counted of it, and its text otherwise."""

    ask: Ask
    since: Instant
    known: Usage | None
    delivered: OutputTally


class Stream(Protocol):
    """What is checkpointed."""

    @property
    def request_id(self) -> str:
        """The id of its event."""

    @property
    def is_over(self) -> bool:
        """Whether it is recorded, or came to nothing."""

    def progress(self) -> Progress | None:
        """Return what it has delivered, None if nothing yet."""

    def checkpoint(self, usage: Usage, source: CountSource, at: Instant) -> Due:
        """Return the event that it would become now. Called on the thread."""


class Counter(Protocol):
    """What counts prompts, and knows vocabularies."""

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        """Count off the event loop; `done` is called on it."""

    def vocabulary(self, model: str) -> Vocabulary:
        """Return a model's vocabulary."""


@dataclass(slots=True, eq=False)
class _Known:
    """One stream that lives long enough: when it is looked at next, its prompt, and what was written of it last."""

    stream: Stream
    next_s: float
    prompt_tokens: int | None = None
    counting_s: float = 0.0
    written: Usage | None = None


class _Draft(NamedTuple):
    """A stream and what it has delivered at an instant, on its way to the thread."""

    known: _Known
    progress: Progress
    at: Instant


class Checkpoints:
    """All streams of one worker. Its methods are the event loop's, those of the second half the thread's."""

    def __init__(
        self,
        database: Database,
        counter: Counter,
        live: Collection[Stream],
        checkpointed: set[str],
        models: Callable[[], Iterable[str]] = tuple,
        spool: Spool | None = None,
        now: Clock = clock.now,
    ) -> None:
        """`live` are the requests under way, `checkpointed` is kept as the ids that may have a checkpoint.

        `models` are those whose vocabularies will be needed.
        """
        self._database = database
        self._counter = counter
        self._live = live
        self._checkpointed = checkpointed
        self._models = models
        self._spool = spool
        self._now = now
        self._known: dict[str, _Known] = {}
        self._vocabularies: dict[str, Vocabulary] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weir-checkpoints")
        self._task: asyncio.Task[None] | None = None
        self._worker_id: str | None = None
        self._beat_s = 0.0
        self._held: list[Connection] = []
        self._stored_refs: set[str] = set()
        self.is_away = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look."""
        self._task = loop.create_task(self._run(), name="weir-checkpoints")

    async def close(self) -> None:
        """End, once all streams are recorded."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.get_running_loop().run_in_executor(self._thread, self._leave)
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        warming = loop.call_later(WARM_AFTER_S, self._warm)
        while True:
            try:
                await asyncio.sleep(TICK_S)
                await self.round(loop.time())
            except asyncio.CancelledError:
                warming.cancel()
                raise
            except Exception:  # without checkpoints a crash costs more than a second, and nothing else
                log.exception("checkpoints.failed")

    def _warm(self) -> None:
        """Read the vocabularies before a stream waits for its first checkpoint: that takes half a second."""
        for model in self._models():
            self._thread.submit(self._vocabulary, model)

    async def round(self, now_s: float) -> None:
        """Look once, at a time of the event loop's clock."""
        loop = asyncio.get_running_loop()
        drafts = await self._drafts(now_s)
        over = [request_id for request_id, known in self._known.items() if known.stream.is_over]
        written = [request_id for request_id in over if request_id in self._checkpointed]
        if drafts or written or (self._checkpointed and now_s - self._beat_s >= AGAIN_AFTER_S):
            self._beat_s = now_s
            if not await loop.run_in_executor(self._thread, self._write, drafts, written):
                over = [request_id for request_id in over if request_id not in self._checkpointed]
        for request_id in over:
            del self._known[request_id]
            self._checkpointed.discard(request_id)

    async def _drafts(self, now_s: float) -> list[_Draft]:
        """Ask the streams whose turn it is, and count the prompts of those whose turn it is first."""
        drafts = []
        prompts: list[asyncio.Future[None]] = []
        for number, stream in enumerate(list(self._live), 1):
            known = self._known.get(stream.request_id)
            if known is None or now_s >= known.next_s:
                draft = self._draft(stream, known, now_s, prompts)
                if draft is not None:
                    drafts.append(draft)
            if number % STREAMS_AT_ONCE == 0:
                await asyncio.sleep(0)
        if prompts:
            await asyncio.wait(prompts, timeout=PROMPTS_WAIT_S)
        return drafts

    def _draft(
        self, stream: Stream, known: _Known | None, now_s: float, prompts: list[asyncio.Future[None]]
    ) -> _Draft | None:
        now = self._now()
        progress = stream.progress()
        if progress is None or (known is None and now - progress.since < FIRST_AFTER_S * SECOND_US):
            return None
        if known is None:
            known = self._known[stream.request_id] = _Known(stream, now_s)
            if progress.known is None:
                prompts.append(self._count_prompt(known, progress.ask))
        known.next_s = now_s + max(AGAIN_AFTER_S, COUNTING_PAUSE * known.counting_s)
        self._checkpointed.add(stream.request_id)
        return _Draft(known, progress, now)

    def _count_prompt(self, known: _Known, ask: Ask) -> "asyncio.Future[None]":
        counted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(tokens: int | None) -> None:
            known.prompt_tokens = tokens
            counted.set_result(None)

        self._counter.count_prompt(ask, done)
        return counted

    # the thread's side

    def _write(self, drafts: list[_Draft], over: list[str]) -> bool:
        """Write what has changed, and forget what is over; False if it could not be done."""
        counted = [(draft, *self._count(draft)) for draft in drafts]
        changed = [(draft, usage, source) for draft, usage, source in counted if usage != draft.known.written]
        checkpoints = [draft.known.stream.checkpoint(usage, source, draft.at) for draft, usage, source in changed]
        try:
            self._commit(checkpoints, over)
        except (DatabaseError, DatabaseAwayError) as error:
            if not self.is_away:
                log.warning("checkpoints.away", extra={"error": type(error).__name__})
            self.is_away = True
            self._spool_instead(checkpoints, over)
            return False
        if self.is_away and self._spool is not None:
            self._spool.forget_checkpoints()
        self.is_away = False
        for draft, usage, _ in changed:
            draft.known.written = usage
        return True

    def _spool_instead(self, checkpoints: list[Due], over: list[str]) -> None:
        """Keep the checkpoints here while the ledger is away; they are written again when it is back."""
        try:
            if self._spool is not None:
                self._spool.checkpoint(checkpoints, over)
        except SpoolError as error:
            log.error("checkpoints.unwritten", extra={"error": str(error)})  # noqa: TRY400 -- it says why

    def _count(self, draft: _Draft) -> tuple[Usage, CountSource]:
        progress = draft.progress
        if progress.known is not None:
            return progress.known, CountSource.UPSTREAM
        vocabulary = self._vocabulary(progress.ask.model)
        since_s = time.thread_time()
        output = progress.delivered.output_tokens(vocabulary)
        reasoning = min(output, progress.delivered.reasoning_tokens(vocabulary))
        draft.known.counting_s = time.thread_time() - since_s
        return Usage(draft.known.prompt_tokens or 0, output, reasoning_tokens=reasoning), CountSource.COUNTED

    def _vocabulary(self, model: str) -> Vocabulary:
        found = self._vocabularies.get(model)
        if found is None:
            found = self._vocabularies[model] = self._counter.vocabulary(model)
        return found

    def _commit(self, checkpoints: list[Due], over: list[str]) -> None:
        quotes = {each.quote.ref: each.quote for each in checkpoints if each.quote.ref not in self._stored_refs}
        with self._database.writing_on(self._held) as conn:
            dues.store_quotes(conn, quotes.values())
            worker_id = self._alive(conn)
            inflight.write(conn, worker_id, checkpoints)
            if over:
                inflight.drop(conn, over)
        self._worker_id = worker_id
        self._stored_refs.update(quotes)

    def _alive(self, conn: Connection) -> str:
        """Give a sign of life, and return this worker's id: a new one if it is not known (any more).

        If others have taken it for dead its streams are billed up to their last checkpoints: the rest will follow.
        """
        at = leases.database_now(conn, self._now)
        if self._worker_id is not None and inflight.beat(conn, self._worker_id, at):
            return self._worker_id
        worker_id = ids.new_id("worker")
        inflight.register(conn, worker_id, f"{socket.gethostname()}:{os.getpid()}", at)
        return worker_id

    def _leave(self) -> None:
        try:
            if self._worker_id is not None:
                with self._database.writing_on(self._held) as conn:
                    inflight.leave(conn, self._worker_id)
        except (DatabaseError, DatabaseAwayError) as error:
            log.warning("checkpoints.away", extra={"error": type(error).__name__})
        for connection in self._held:
            connection.close()
