"""The flow of a metered stream, whatever its protocol: what passes at once, what is kept to be counted, what is held.

Transparent: every byte is passed on in order, as soon as the event that it belongs to is whole, but for two things:
`cost` is added to the usage object that ends the answer, and the terminal event, with all that follows it, is held for
`finish`. A read that holds whole events, and none that can matter, passes unparsed; it is kept by reference, to be
counted should the stream be cut, and past 64 KiB folded to its text.

A flow knows framing and no protocol. What may matter, what an event says and which text it brings is for `responses`,
`messages` and `ollama` to say.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from billing.tokens.counting import OutputTally, Piece
from billing.usage import Usage
from proxy.meter.framing import Framer, event_data
from proxy.meter.ndjson import LineFramer
from proxy.meter.reading import with_cost
from proxy.meter.steps import Settle, Times
from proxy.meter.stream import KEPT_BYTES_MAX
from proxy.meter.told import Told, parsed_object, proven

CostOf = Callable[[Usage], str]


class Framing(Protocol):
    """What cuts a stream of reads into whole events."""

    @property
    def is_empty(self) -> bool:
        """Whether no unfinished event is kept."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are whole now. Raises StreamError."""

    def rest(self) -> bytes:
        """Return and forget the unfinished event."""


class Flow(ABC):
    """Bytes of a stream in, bytes for the client out, the usage at the end."""

    __slots__ = (
        "_boundary",
        "_cost_of",
        "_data_of",
        "_framer",
        "_framing",
        "_held",
        "_is_error",
        "_kept",
        "_kept_bytes",
        "_tally",
        "_times",
        "_told",
        "is_complete",
    )

    def __init__(self, *, cost_of: CostOf | None, has_stop_texts: bool, is_lines: bool) -> None:
        """`is_lines`: newline-delimited JSON, and not server-sent events."""
        self.is_complete = False
        self._framing: Callable[[], Framing] = LineFramer if is_lines else Framer
        self._data_of: Callable[[bytes], bytes] = bytes.strip if is_lines else event_data
        self._boundary = b"\n" if is_lines else b"\n\n"
        self._framer = self._framing()
        self._cost_of = cost_of
        self._held: list[bytes] = []
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._tally = OutputTally(has_stop_texts=has_stop_texts)
        self._told: Told | None = None
        self._times: Times | None = None
        self._is_error = False

    @abstractmethod
    def _matters(self, data: bytes) -> bool:
        """Tell whether a read or an event may end the stream, fail it or report its usage."""

    @abstractmethod
    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        """Take what an event says; return its usage object if the client gets the cost there."""

    @abstractmethod
    def _pieces(self, parsed: dict[str, Any], event: bytes) -> Iterable[Piece]:
        """Return the generated text that an event brings."""

    def receive(self, data: bytes) -> bytes:
        """Return what may be sent now. Raises StreamError if the upstream broke the protocol."""
        if self.is_complete:
            self._held.append(data)
            self._kept.append(data)  # held anyway, so that it costs no memory, and may be the middle of an event
            return b""
        if self._framer.is_empty and data.endswith(self._boundary) and not self._matters(data):
            self._keep(data)
            return data
        events = self._framer.feed(data)
        passed = []
        for index, event in enumerate(events):
            looked_at = self._look(event) if self._matters(event) else event
            if self.is_complete:
                self._keep(b"".join(passed))
                self._end_with(looked_at, *events[index + 1 :], self._framer.rest())
                return b"".join(passed)
            passed.append(looked_at)
        sent = b"".join(passed)
        self._keep(sent)
        return sent

    def _look(self, event: bytes) -> bytes:
        """Return an event as the client gets it, after noting what it says."""
        parsed = parsed_object(self._data_of(event))
        if parsed is None:
            return event
        self._is_error = self._is_error or bool(parsed.get("error"))
        reported = self._note(parsed, event)
        usage = self.known_usage() if reported is not None and self._cost_of is not None else None
        if usage is None or self._cost_of is None:
            return event
        return self._priced(event, self._cost_of(usage), reported)

    def _priced(self, event: bytes, cost: str, reported: dict[str, Any] | None) -> bytes:
        return with_cost(event, cost, reported)

    def _end_with(self, terminal: bytes, *after: bytes) -> None:
        """Hold the terminal event and what follows it; a count of the text, for a cut or an audit, reads them, too."""
        self._held = [terminal, *after]
        self._keep(b"".join(self._held))

    def _keep(self, data: bytes) -> None:
        if data:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > KEPT_BYTES_MAX:
                self._fold()

    def _fold(self) -> None:
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        framer = self._framing()
        for event in framer.feed(b"".join(kept)):
            self._take(event)
        rest = framer.rest()
        if rest and not self._take(rest):
            self._kept = [rest]  # what comes may end it

    def _take(self, event: bytes) -> bool:
        """Count the text of an event, and tell whether it could be read."""
        data = self._data_of(event)
        parsed = parsed_object(data) if data.lstrip().startswith(b"{") else None
        if parsed is None:
            return False
        for piece in self._pieces(parsed, event):
            self._tally.take(piece)
        return True

    def finish(self) -> Settle:
        """End the stream: its usage, and the bytes that may leave once that is recorded.

        An event that the end of the stream cut short counts if it can be read, for some clients read it. A stream that
        ends with neither its terminal event nor a report broke off. Called again, it gives what has come since.
        """
        rest = self._framer.rest()
        if rest and not self.is_complete:
            self._end_with(self._look(rest) if self._matters(rest) else rest)
        raw = b"".join(self._held)
        self._held = []
        broke_off = not self.is_complete and self._told is None
        return Settle(
            self.known_usage(),
            raw,
            self._is_error or broke_off,
            times=self._times,
            broke_off=broke_off and not self._is_error,
        )

    def known_usage(self) -> Usage | None:
        """Return the usage if the upstream told all of it."""
        usage = self._told.usage if self._told is not None else None
        return usage if usage is None or usage.output_tokens else proven(self._told, self._text())

    def known_prompt(self) -> Usage | None:
        """Return the prompt's part of a usage (no output) if the upstream told it before the end."""
        return None

    def delivered(self) -> OutputTally:
        """Return what was passed on so far, to be counted: for a stream that was cut or not reported whole."""
        text = self._text()
        return self._told.over(text) if self._told is not None else text

    def _text(self) -> OutputTally:
        self._fold()
        return self._tally
