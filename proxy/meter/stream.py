"""The meter of streamed chat and text completions (OpenAI shape).

Transparent: every byte is passed on in order, as soon as the event that it belongs to is whole, but for three things:
the usage that exists only because Weir asked for it (a chunk of its own, or running counts) is hidden; `cost` is added
to the usage that the client asked for; and the terminal `[DONE]` event, with all that follows it, is held for
`finish`.

A read that holds whole events, and none that matters, passes unparsed: that test costs half a microsecond. Such reads
are kept by reference, to be counted should the stream be cut; past 64 KiB they are folded to their text.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

from billing.tokens.counting import OutputTally, pieces
from billing.usage import Usage
from proxy.meter.framing import Framer, event_data
from proxy.meter.reading import (
    has_usage,
    parse,
    progress_of,
    times_of,
    timings_of,
    usage_of,
    with_cost,
    without_usage,
)
from proxy.meter.steps import Outputs, Settle, Times
from proxy.meter.told import KnownOutput

KEPT_BYTES_MAX = 64 * 1024
_DONE = b"[DONE]"


class StreamMeter:
    """Bytes of an event stream in, bytes for the client out, the usage at the end."""

    __slots__ = (
        "_adds_outputs",
        "_cost_of",
        "_framer",
        "_held",
        "_hides_running",
        "_hides_usage",
        "_is_error",
        "_is_total",
        "_kept",
        "_kept_bytes",
        "_last",
        "_outputs",
        "_prompt",
        "_reported",
        "_running",
        "_tally",
        "_times",
        "_usage",
        "is_complete",
        "watch",
    )

    def __init__(
        self,
        *,
        hides_usage: bool,
        cost_of: Callable[[Usage], str] | None = None,
        outputs: Outputs = Outputs(),  # noqa: B008 -- frozen
        adds_outputs: bool = False,
        has_stop_texts: bool = False,
        hides_running: bool = False,
    ) -> None:
        """`cost_of` gives the JSON number for `usage.cost`, if the client sees usage.

        `adds_outputs`: the upstream reports usage once per output (llama.cpp), not once for all. `has_stop_texts`: the
        request has `stop`, which matters if the text has to be counted. `hides_running`: Weir alone asked for a usage
        on each chunk (vLLM's running counts). `watch`, if it is set, is shown each parsed event, and keeps itself what
        it needs: nothing is `delivered` then.
        """
        self.is_complete = False
        self.watch: Callable[[dict[str, Any]], None] | None = None
        self._hides_usage = hides_usage
        self._hides_running = hides_running
        self._running: dict[int, Usage] = {}
        self._cost_of = cost_of
        self._outputs = outputs
        self._adds_outputs = adds_outputs and outputs.total > 1
        self._framer = Framer()
        self._held: list[bytes] = []
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._last = b""
        self._tally = OutputTally(has_stop_texts=has_stop_texts)
        self._times: Times | None = None
        self._usage: Usage | None = None
        self._prompt: Usage | None = None
        self._reported = 0
        self._is_total = False
        self._is_error = False

    def receive(self, data: bytes) -> bytes:
        """Return what may be sent now. Raises StreamError if the upstream broke the protocol."""
        if self.is_complete:
            self._held.append(data)
            return b""
        if self._framer.is_empty and data.endswith(b"\n\n") and not _matters(data) and self.watch is None:
            self._keep(data)
            return data
        events = self._framer.feed(data)
        passed = []
        for index, event in enumerate(events):
            kept = self._look(event) if _matters(event) or self.watch is not None else event
            if self.is_complete:
                self._held.extend(events[index:])
                self._held.append(self._framer.rest())
                break
            if kept:
                passed.append(kept)
        sent = b"".join(passed)
        if sent:
            self._keep(sent)
        return sent

    def _look(self, event: bytes) -> bytes:
        """Return what of a suspicious event is passed on, after noting what it says."""
        data = event_data(event)
        if data.strip() == _DONE:
            self.is_complete = True
            return b""
        parsed = parse(data)
        if not isinstance(parsed, dict):
            return event
        self._is_error = self._is_error or bool(parsed.get("error"))
        if self.watch is not None:
            self.watch(parsed)
        if not has_usage(parsed):
            return event
        if "timings" in parsed:
            self._add_times(times_of(parsed))
        has_choices = bool(parsed.get("choices"))
        usage = usage_of(parsed)
        if usage is not None:
            self._note(usage, has_choices=has_choices)
        if has_choices and self._hides_running:
            self._add_up(parsed["choices"], usage)
            return without_usage(event, parsed["usage"])
        if self._hides_usage:
            return event if has_choices else b""
        if usage is None or self._cost_of is None or (has_choices and not _is_finish(parsed)):
            return event
        total = self._total()
        return event if total is None else with_cost(event, self._cost_of(total), parsed["usage"])

    def _note(self, usage: Usage, *, has_choices: bool) -> None:
        """Add the report of one more output, or take a later report for the better one.

        What a later report leaves out (vLLM's running counts have no cached part) is taken from the one before.
        """
        self._reported += 1
        self._is_total = self._outputs.total == 1 or not has_choices
        so_far = self._usage
        if so_far is None:
            self._usage = usage
        elif self._adds_outputs:
            self._usage = Usage(*(one + other for one, other in zip(so_far, usage, strict=True)))
        else:
            self._usage = Usage(*(later or earlier for earlier, later in zip(so_far, usage, strict=True)))

    def _add_times(self, told: Times | None) -> None:
        """Add the times of one more output."""
        so_far = self._times
        if so_far is None or told is None:
            self._times = told or so_far
        else:
            self._times = Times(so_far.prompt_us + told.prompt_us, so_far.generation_us + told.generation_us)

    def _add_up(self, choices: object, running: Usage | None) -> None:
        """Add the running counts of several outputs up: each chunk tells those of its own, with the prompt of all."""
        first = choices[0] if isinstance(choices, list) else None
        index = first.get("index") if isinstance(first, dict) else None
        total = self._outputs.total
        if running is None or total == 1 or not isinstance(index, int) or not 0 <= index < total:
            return
        self._running[index] = running
        self._usage = running._replace(
            output_tokens=sum(each.output_tokens for each in self._running.values()),
            reasoning_tokens=sum(each.reasoning_tokens for each in self._running.values()),
        )
        self._is_total = True

    def _keep(self, data: bytes) -> None:
        if self.watch is not None:
            return
        self._kept.append(data)
        self._kept_bytes += len(data)
        if self._kept_bytes > KEPT_BYTES_MAX:
            self._fold()

    def _fold(self) -> None:
        framer = Framer()
        for event in (*framer.feed(b"".join(self._kept)), framer.rest()):
            data = event_data(event)
            if data.startswith(b"{"):
                self._last, parsed = data, parse(data)
                if b'"prompt_progress"' in data and self._outputs.total == 1:
                    self._prompt = progress_of(parsed) or self._prompt
                for piece in pieces(parsed):
                    self._tally.take(piece)
        self._kept = []
        self._kept_bytes = 0

    def finish(self) -> Settle:
        """End the stream: its usage, and the bytes that may leave once that is recorded.

        An event that the end of the stream cut short of its empty line counts like the others: there are clients that
        read it. A stream that ends without `[DONE]`, a report and a `finish_reason` broke off (transformers has no
        `[DONE]`, but both others). Called again, it gives what has come since.
        """
        rest = self._framer.rest()
        raw = b"".join(self._held) + rest
        self._held = []
        if rest and not self.is_complete:
            kept = self._look(rest)
            raw = rest if self.is_complete else kept
            self._keep(kept)
        usage = self.known_usage()
        broke_off = usage is None and not self.is_complete and not self.delivered().finishes
        return Settle(
            usage, raw, self._is_error or broke_off, times=self._times, broke_off=broke_off and not self._is_error
        )

    def known_usage(self) -> Usage | None:
        """Return the usage so far if the upstream told it: at the end, or with each event.

        A report of no output beside text that was passed on is none. One of no prompt is none either: no prompt is
        empty, and it is counted.
        """
        usage = self._total() or self._timings()
        if usage is None or not usage.input_tokens or (not usage.output_tokens and not self._text().is_empty):
            return None
        return usage

    def known_prompt(self) -> Usage | None:
        """Return the prompt if the client asked llama.cpp to tell it (`return_progress`)."""
        self._fold()
        return self._prompt

    def _total(self) -> Usage | None:
        """Return what was reported if it is about all outputs.

        llama.cpp reports each output, and its prompt with each of the n: that is billed once. vLLM's running counts are
        about one output each, only its last report is about all.
        """
        usage = self._usage
        if usage is None or not self._adds_outputs:
            return usage if self._is_total else None
        if self._reported < self._outputs.total:
            return None
        n = self._outputs.n
        return usage._replace(
            input_tokens=usage.input_tokens // n,
            cached_input_tokens=usage.cached_input_tokens // n,
            image_input_tokens=usage.image_input_tokens // n,
            audio_input_tokens=usage.audio_input_tokens // n,
        )

    def _timings(self) -> Usage | None:
        """Return the usage that llama.cpp's counters on the last event tell, reported or not."""
        if self._outputs.total > 1:
            return None
        self._fold()
        return timings_of(parse(self._last))

    def delivered(self) -> OutputTally:
        """Return what was passed on so far, as text to be counted: for a stream that was cut."""
        usage, text = self._total(), self._text()
        return KnownOutput(usage.output_tokens, text) if _tells_output_alone(usage) else text

    def _text(self) -> OutputTally:
        self._fold()
        return self._tally


def _matters(data: bytes) -> bool:
    """Tell whether a read may hold a usage object, an error or the terminal event.

    Inside JSON texts the quotes of these keys would be escaped, so that a false alarm costs time and nothing else.
    """
    if b"[DONE]" in data or b'"error"' in data:
        return True
    mentions = data.count(b'"usage"')
    return bool(mentions) and mentions != data.count(b'"usage":null')


def _tells_output_alone(usage: Usage | None) -> TypeGuard[Usage]:
    return usage is not None and not usage.input_tokens and usage.output_tokens > 0


def _is_finish(parsed: dict[str, Any]) -> bool:
    choices = parsed.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )
