"""Counting off the event loop: what the upstream did not count, and what it counted too well.

The prompt of a cut stream is asked of the upstream first, where it has a route for that and so applies its own chat
template (`inquiry.py`), then counted on the model's own vocabulary. What was delivered is counted on that vocabulary
(`billing/tokens/counting.py`). A report that can hardly be true is counted on our side alone (`recount`): only the text
that the server's template makes is taken from it, never its numbers.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from billing.tokens.counting import OutputTally
from billing.tokens.errors import VocabularyError
from billing.tokens.prompt import count_prompt, media_parts
from billing.tokens.qwen35 import NAME as BUILT_IN
from billing.tokens.registry import TokenizerRegistry
from billing.tokens.vocabulary import Dialect, Vocabulary, server_normalizes
from billing.usage import Anomaly, Usage
from proxy.meter.told import KnownOutput
from proxy.relay import doubt, inquiry
from proxy.relay.catalog import Server
from proxy.relay.request import Ask

THREADS = 2
_PROMPT_FIELDS = ("messages", "prompt", "input", "system", "instructions", "query", "documents", "texts")
SHORT_BYTES_MAX = 2_048
"""What may be counted on the event loop, where a doubtful stream shows its price."""

log = logging.getLogger("weir.counting")


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer without usage: what was asked, of whom, what was delivered, and the prompt if its server told that."""

    ask: Ask
    server: Server
    tally: OutputTally
    prompt: Usage | None = None

    @property
    def least(self) -> Usage:
        """What it has at least, without any vocabulary: a token never spans two words, and a delta has one or more."""
        words = len(orjson.dumps([self.ask.body.get(name) for name in _PROMPT_FIELDS]).split())
        prompt = self.prompt or Usage(words, 0)
        return prompt._replace(output_tokens=self.tally.deltas)


class Claim(NamedTuple):
    """A report to be compared with a count: what was asked, of whom, what was reported, and how to see what came.

    `delivered` is called once, in another thread: the answer is complete, so that nobody else reads it then.
    """

    ask: Ask
    server: Server
    reported: Usage
    delivered: Callable[[], OutputTally]

    def seen(self) -> OutputTally:
        """Return the text that was delivered, whatever the server says that it counts."""
        tally = self.delivered()
        return tally.seen if isinstance(tally, KnownOutput) else tally


Judged = Callable[[Usage, tuple[Anomaly, ...]], None]
"""Takes what is billed of a report, and what was found wrong with it."""


class Counting:
    """Counts cuts and claims on threads of its own and reports on the event loop."""

    def __init__(
        self, registry: TokenizerRegistry, loop: asyncio.AbstractEventLoop, *, clamps_output: bool = False
    ) -> None:
        """`clamps_output`: an output that is reported far too large is billed as counted, and not only marked."""
        self._registry = registry
        self._loop = loop
        self._clamps_output = clamps_output
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="weir-counting")
        self._under_way: set[asyncio.Future[Any]] = set()

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        """Count a prompt on the model's own vocabulary; `done` is called on the event loop, always (None: it failed).

        No server is chosen yet, so it is not known whether it normalises: what is not normalised is never shorter.
        """

        def count() -> int:
            return count_prompt(self.vocabulary(ask.model), ask.endpoint, ask.body, nfc=False)

        self._begin(count, done, None)

    def count(self, cut: Cut, done: Callable[[Usage], None]) -> None:
        """Count; `done` is called on the event loop, always."""
        # a request that can not be counted must settle all the same, and not for nothing; the log tells of it
        self._begin(lambda: self._count(cut), done, cut.least)

    def verify(self, claim: Claim, done: Judged) -> None:
        """Compare a report with a count; `done` is called on the event loop, always (as reported, if it failed)."""

        def compare() -> tuple[Usage, tuple[Anomaly, ...]]:
            return doubt.judge(claim.reported, self.recount(claim), clamps_output=self._clamps_output)

        self._begin(compare, lambda found: done(*found), (claim.reported, ()))

    def believed(self, claim: Claim, body_bytes: int) -> Usage | None:
        """Return what `verify` will leave of a reported prompt, at once; None where that would take too long.

        On the event loop, hence short texts alone (0.1 ms), and no question to the server: should its template explain
        the report, `verify` will find that, and bill as reported.
        """
        vocabulary = self._registry.loaded(claim.ask.model)
        if vocabulary is None or body_bytes > SHORT_BYTES_MAX:
            return None
        return doubt.judge(claim.reported, self._counted_prompt(claim, vocabulary), clamps_output=False)[0]

    def _begin(self, count: Callable[[], Any], done: Callable[[Any], None], otherwise: object) -> None:
        def report(finished: asyncio.Future[Any]) -> None:
            self._under_way.discard(finished)
            fault = finished.exception()
            if fault is not None:
                log.error("counting.failed", exc_info=fault)
            done(otherwise if fault is not None else finished.result())

        future = self._loop.run_in_executor(self._threads, count)
        self._under_way.add(future)
        future.add_done_callback(report)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._threads.shutdown()

    def _count(self, cut: Cut) -> Usage:
        vocabulary = self.vocabulary(cut.ask.model)
        output = cut.tally.output_tokens(vocabulary)
        reasoning = min(output, cut.tally.reasoning_tokens(vocabulary))
        if cut.prompt is not None:
            return cut.prompt._replace(output_tokens=output, reasoning_tokens=reasoning)
        prompt = inquiry.prompt_tokens(cut.server, cut.ask)
        if prompt is None:
            nfc = server_normalizes(cut.server.kind)
            prompt = count_prompt(vocabulary, cut.ask.endpoint, cut.ask.body, nfc=nfc)
        return Usage(prompt, output, reasoning_tokens=reasoning)

    def recount(self, claim: Claim) -> doubt.Counted:
        """Count what was asked and delivered, where it is ours to count. Blocks: for threads."""
        ask, reported = claim.ask, claim.reported
        vocabulary = self.vocabulary(ask.model)
        found = self._counted_prompt(claim, vocabulary)
        if doubt.exceeds_input(reported, found):
            prompt = inquiry.rendered_prompt(claim.server, ask)
            rendered = 0 if prompt is None else vocabulary.prompt_extra + vocabulary.count(prompt)
            found = found._replace(input_tokens=max(found.input_tokens or 0, rendered))
        if doubt.has_opaque_output(ask):
            return found
        tally = claim.seen()
        seen, tools = tally.reasoning_tokens(vocabulary), tally.tool_tokens(vocabulary)
        hidden = doubt.hidden_output(ask, reported, reasoning_seen=seen, tool_tokens=tools)
        return found._replace(output_tokens=tally.output_tokens(vocabulary), hidden_tokens=hidden)

    def _counted_prompt(self, claim: Claim, vocabulary: Vocabulary) -> doubt.Counted:
        """Return our count of a prompt, or the largest that it may have; None where only the server can know."""
        ask, kind = claim.ask, claim.server.kind
        counted = self.own_prompt(claim, vocabulary)
        if counted is not None and doubt.has_templated_fields(ask):
            counted = max(counted, vocabulary.count(orjson.dumps(ask.body).decode()))
        return doubt.Counted(
            input_tokens=counted,
            output_tokens=None,
            input_slack=doubt.template_slack(ask, kind, is_known=self.is_known(ask.model, vocabulary)),
            output_tokens_max=ask.limit_on(kind),
        )

    def own_prompt(self, claim: Claim, vocabulary: Vocabulary) -> int | None:
        """Return our count of a prompt, by the rules of the model's template; None where only the server can know."""
        ask = claim.ask
        if doubt.has_opaque_prompt(ask) or media_parts(ask.endpoint, ask.body):
            return None
        return count_prompt(vocabulary, ask.endpoint, ask.body, nfc=server_normalizes(claim.server.kind))

    def is_known(self, model: str, vocabulary: Vocabulary) -> bool:
        """Tell whether vocabulary and chat template are known to be the model's own."""
        return self._registry.choose(model).is_exact and vocabulary.dialect is not Dialect.OTHER

    def vocabulary(self, model: str) -> Vocabulary:
        """Return a model's vocabulary, or the built-in one where it has none that can be read."""
        try:
            return self._registry.vocabulary(model)
        except VocabularyError as error:
            log.error("counting.vocabulary", extra={"model": model, "error": str(error)})  # noqa: TRY400
            return self._registry.vocabulary(BUILT_IN)
