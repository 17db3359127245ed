"""Recounting a sample of live traffic (`[audit] sample`), so that a server that reports wrongly is caught.

Invariant: traffic never waits for it. A finished exchange is handed over by reference, or dropped when the queue is
full; one thread of its own counts it, keeps the numbers alone, and adds them to the ledger every few seconds. Texts
live as long as their place in the queue (I10). What the ledger can not take now is added later.

A prompt that we count otherwise than the server is counted again in the words that the server's own template makes of
it, where it shows them (llama.cpp): its template is not ours to doubt, its arithmetic is.
"""

import logging
import queue
import threading
import time
from random import Random, SystemRandom
from typing import Final

from billing import clock
from billing.errors import DatabaseAwayError
from billing.ledger import token_audits
from billing.ledger.database import Database, DatabaseError
from billing.ledger.token_audits import Found, Source
from billing.tokens.drift import Side, Verdict, compared
from billing.tokens.vocabulary import Vocabulary
from proxy.meter import endpoints
from proxy.relay import doubt, inquiry
from proxy.relay.catalog import Server
from proxy.relay.counting import Claim, Counting

QUEUE_CLAIMS_MAX: Final = 256
QUEUE_BYTES_MAX: Final = 32 * 2**20
FLUSH_INTERVAL_S: Final = 2.0
VERSION_FOR_S: Final = 300.0
STOP_WITHIN_S: Final = 10.0
PPM: Final = 1_000_000
_DRAW_BITS: Final = 64
"""So many that the remainder by PPM favours nobody by more than one in 10¹³; a draw costs 0.1 µs and no system call."""


PROMPT_SLACK_TOKENS: Final = 8
"""What the template of a known model may be changed by (a date, a default system prompt left out)."""

OUTPUT_SLACK_TOKENS: Final = 2
OUTPUT_SLACK_SHARE: Final = 50
"""A model may write a text in other tokens than a tokenizer would: seldom, and never near 1 in 50."""

DROPPED: Final = "dropped"

log = logging.getLogger("weir.audit")


class Auditor:
    """Samples in, sums in the ledger out."""

    def __init__(self, counting: Counting, database: Database, sample_ppm: int) -> None:
        self._counting = counting
        self._database = database
        self._sample_ppm = sample_ppm
        self._random = Random(SystemRandom().getrandbits(128)).getrandbits if sample_ppm < PPM else None  # noqa: S311 -- no secret
        self._queue: queue.Queue[tuple[Claim, int] | None] = queue.Queue(QUEUE_CLAIMS_MAX)
        self._bytes = 0
        self._lock = threading.Lock()
        self._versions: dict[str, tuple[float, str]] = {}
        self._sums: dict[clock.Instant, dict[Source, Found]] = {}
        self._flushed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="weir-audit", daemon=True)
        self.results: dict[str, int] = dict.fromkeys((*Verdict, DROPPED), 0)
        """Sides of samples (a prompt, an output) by verdict, and samples that were dropped: for `/metrics`."""

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def stop(self) -> None:
        """Count what waits, write it down, and end."""
        self._queue.put(None)
        self._thread.join(STOP_WITHIN_S)

    def picks(self) -> bool:
        """Tell whether the next exchange belongs to the sample. No server can foresee it."""
        return self._random is None or self._random(_DRAW_BITS) % PPM < self._sample_ppm

    def take(self, claim: Claim, size: int) -> None:
        """Queue an exchange of about `size` bytes, or drop it. On the event loop."""
        with self._lock:
            if self._bytes + size > QUEUE_BYTES_MAX:
                self.results[DROPPED] += 1
                return
            self._bytes += size
        try:
            self._queue.put_nowait((claim, size))
        except queue.Full:
            self.results[DROPPED] += 1
            with self._lock:
                self._bytes -= size

    # the thread's side

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=FLUSH_INTERVAL_S)
            except queue.Empty:
                self._flush()
                continue
            if item is None:
                self._flush()
                return
            self._examine(item[0])
            with self._lock:
                self._bytes -= item[1]
            del item  # the texts go with it
            if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
                self._flush()

    def _examine(self, claim: Claim) -> None:
        try:
            found = self.compare(claim)
            source = self._source(claim)
        except Exception:  # at the thread's edge: one odd exchange must not end the audit of all others
            log.exception("audit.failed")
            return
        for side in (found.input, found.output):
            self.results[side.verdict] += 1
        of_day = self._sums.setdefault(token_audits.day_of(clock.now()), {})
        of_day[source] = of_day.get(source, Found()) + found

    def compare(self, claim: Claim) -> Found:
        """Count an exchange, and return both sides of it; one that only the server can count is empty."""
        vocabulary = self._counting.vocabulary(claim.ask.model)
        is_known = self._counting.is_known(claim.ask.model, vocabulary)
        return Found(
            self._compare_prompt(claim, vocabulary, is_known=is_known),
            self._compare_output(claim, vocabulary, is_known=is_known),
        )

    def _compare_prompt(self, claim: Claim, vocabulary: Vocabulary, *, is_known: bool) -> Side:
        ask, reported = claim.ask, claim.reported.input_tokens
        counted = self._counting.own_prompt(claim, vocabulary)
        if counted is None:
            return Side()
        slack = doubt.template_slack(ask, claim.server.kind, is_known=is_known)
        slack = PROMPT_SLACK_TOKENS if slack == doubt.SLACK_TOKENS else slack
        if doubt.has_templated_fields(ask) and ask.endpoint != endpoints.RESPONSES:
            slack += counted
        if counted != reported:
            rendered = inquiry.rendered_prompt(claim.server, ask)
            if rendered is not None:
                counted, slack = vocabulary.prompt_extra + vocabulary.count(rendered), 0 if is_known else slack
        return compared(reported, counted, slack if is_known else slack + counted // 2)

    def _compare_output(self, claim: Claim, vocabulary: Vocabulary, *, is_known: bool) -> Side:
        ask, reported = claim.ask, claim.reported
        if ask.endpoint in endpoints.PROMPT_ONLY or doubt.has_opaque_output(ask):
            return Side()
        tally = claim.seen()
        counted, seen = tally.output_tokens(vocabulary), tally.reasoning_tokens(vocabulary)
        hidden = doubt.hidden_output(ask, reported, reasoning_seen=seen, tool_tokens=tally.tool_tokens(vocabulary))
        slack = OUTPUT_SLACK_TOKENS * ask.outputs.total + counted // OUTPUT_SLACK_SHARE + hidden
        return compared(reported.output_tokens, counted, slack if is_known else slack + counted // 2)

    def _source(self, claim: Claim) -> Source:
        server = claim.server
        return Source(claim.ask.model, server.config.name, server.kind, self._version(server))

    def _version(self, server: Server) -> str:
        """Return what the server calls its version, asked every few minutes."""
        now = time.monotonic()
        asked_at, version = self._versions.get(server.config.name, (0.0, ""))
        if not asked_at or now - asked_at > VERSION_FOR_S:
            version = inquiry.server_version(server)
            self._versions[server.config.name] = (now, version)
        return version

    def _flush(self) -> None:
        """Add the sums to the ledger; keep them if it does not take them now."""
        self._flushed_at = time.monotonic()
        if not self._sums:
            return
        try:
            with self._database.writing() as conn:
                for day, found in sorted(self._sums.items()):
                    token_audits.add(conn, day, found)
        except (DatabaseAwayError, DatabaseError):
            log.warning("audit.waiting")
            return
        self._sums = {}
