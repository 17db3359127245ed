"""Counting what the upstream did not count, off the event loop: for cut streams and for servers without usage.

The prompt is asked of the upstream first, where it has a route for that (llama.cpp and vLLM:
`/v1/chat/completions/input_tokens`, templates applied, measured), then counted on the model's own vocabulary. What was
delivered is counted on that vocabulary (`billing/tokens/counting.py`).
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from billing import asking
from billing.address import parse
from billing.tokens.counting import OutputTally
from billing.tokens.errors import VocabularyError
from billing.tokens.prompt import count_prompt
from billing.tokens.qwen35 import NAME as BUILT_IN
from billing.tokens.registry import TokenizerRegistry
from billing.tokens.vocabulary import Vocabulary, server_normalizes
from billing.usage import Usage
from proxy.relay.asks import PROMPT_COUNTERS
from proxy.relay.catalog import Server
from proxy.relay.request import Ask

ASK_TIMEOUT_S = 2
THREADS = 2
_COUNTING_KINDS = ("llamacpp", "vllm")

log = logging.getLogger("weir.counting")


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer without usage: what was asked, of whom, and what was delivered."""

    ask: Ask
    server: Server
    tally: OutputTally


class Counting:
    """Counts cuts on threads of its own and reports on the event loop."""

    def __init__(self, registry: TokenizerRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="weir-counting")
        self._under_way: set[asyncio.Future[Any]] = set()

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        """Count a prompt on the model's own vocabulary; `done` is called on the event loop, always (None: it failed).

        No server is chosen yet, so it is not known whether it normalises: what is not normalised is never shorter.
        """

        def count() -> int:
            return count_prompt(self.vocabulary(ask.model), ask.endpoint, ask.body, nfc=False)

        def report(finished: asyncio.Future[int]) -> None:
            self._under_way.discard(finished)
            fault = finished.exception()
            if fault is not None:
                log.error("counting.failed", exc_info=fault)
            done(None if fault is not None else finished.result())

        future = self._loop.run_in_executor(self._threads, count)
        self._under_way.add(future)
        future.add_done_callback(report)

    def count(self, cut: Cut, done: Callable[[Usage], None]) -> None:
        """Count; `done` is called on the event loop, always."""
        future = self._loop.run_in_executor(self._threads, self._count, cut)
        self._under_way.add(future)

        def report(finished: asyncio.Future[Usage]) -> None:
            self._under_way.discard(finished)
            fault = finished.exception()
            if fault is not None:  # the request must settle all the same; the log says that its count is missing
                log.error("counting.failed", exc_info=fault)
            done(Usage(0, 0) if fault is not None else finished.result())

        future.add_done_callback(report)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._threads.shutdown()

    def _count(self, cut: Cut) -> Usage:
        vocabulary = self.vocabulary(cut.ask.model)
        prompt = _ask_upstream(cut.server, cut.ask)
        if prompt is None:
            nfc = server_normalizes(cut.server.kind)
            prompt = count_prompt(vocabulary, cut.ask.endpoint, cut.ask.body, nfc=nfc)
        output = cut.tally.output_tokens(vocabulary)
        return Usage(prompt, output, reasoning_tokens=min(output, cut.tally.reasoning_tokens(vocabulary)))

    def vocabulary(self, model: str) -> Vocabulary:
        """Return a model's vocabulary, or the built-in one where it has none that can be read."""
        try:
            return self._registry.vocabulary(model)
        except VocabularyError as error:
            log.error("counting.vocabulary", extra={"model": model, "error": str(error)})  # noqa: TRY400
            return self._registry.vocabulary(BUILT_IN)


def _ask_upstream(server: Server, ask: Ask) -> int | None:
    """Return the server's own count of the prompt, None if it has no such route or does not answer soon."""
    route, upstream = PROMPT_COUNTERS.get(ask.endpoint), server.config
    upstream_model = server.models.get(ask.model, "")
    if server.kind not in _COUNTING_KINDS or route is None:
        return None
    body = orjson.dumps({**ask.body, "model": upstream_model, "stream": False, "stream_options": None})
    where, key = parse(upstream.url), upstream.api_key
    reply = asking.ask(
        where, route, timeout_s=ASK_TIMEOUT_S, bytes_max=65_536, body=body, api_key=key, tls=server.pool.tls
    )
    parsed = reply.parsed if reply is not None else None
    count = parsed.get("input_tokens") if isinstance(parsed, dict) else None
    return count if isinstance(count, int) and count > 0 else None
