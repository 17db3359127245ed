"""Which meter reads which answer: by the request's path, and by how the upstream says it answers.

It is the answer's content type that decides whether it is a stream, and not the request: transformers streams
`/v1/responses` unless told otherwise, Ollama streams unless told otherwise, and an error comes whole however it was
asked for.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from billing.tokens.counting import OutputTally
from billing.usage import Usage
from proxy.meter import embeddings, endpoints, messages, ollama, responses, whole
from proxy.meter.flow import CostOf
from proxy.meter.framing import StreamError
from proxy.meter.gathered import Gatherer
from proxy.meter.gathered_typed import MessagesGatherer, ResponsesGatherer
from proxy.meter.messages import MessagesMeter
from proxy.meter.ollama import OllamaMeter
from proxy.meter.responses import ResponsesMeter
from proxy.meter.steps import Outputs, Settle
from proxy.meter.stream import StreamMeter

_EVENTS = b"text/event-stream"
_LINES = (b"application/x-ndjson", b"application/ndjson")


class Meter(Protocol):
    """What the relay needs of a stream's meter."""

    @property
    def is_complete(self) -> bool:
        """Whether the terminal event has come."""

    def receive(self, data: bytes) -> bytes:
        """Take a read; return what may be sent now. Raises StreamError if the upstream broke the protocol."""

    def finish(self) -> Settle:
        """End: the usage to record, then the last bytes to send."""

    def known_usage(self) -> Usage | None:
        """Return the usage so far if the upstream told it."""

    def known_prompt(self) -> Usage | None:
        """Return the prompt's part of a usage (no output) if the upstream told it before the end."""

    def delivered(self) -> OutputTally:
        """Return what was passed on so far, to be counted."""


class Whole(NamedTuple):
    """How to read an answer that is not streamed: its usage, or else what has to be counted."""

    settle: Callable[[bytes], Settle]
    delivered: Callable[..., OutputTally]


_COMPLETION = Whole(whole.settle, whole.delivered)
_WHOLE_READERS = {
    endpoints.RESPONSES: Whole(responses.settle, responses.delivered),
    endpoints.MESSAGES: Whole(messages.settle, messages.delivered),
    endpoints.EMBEDDINGS: Whole(embeddings.settle, embeddings.delivered),
    endpoints.RERANK: Whole(embeddings.settle, embeddings.delivered),
    endpoints.OLLAMA_EMBED: Whole(ollama.settle_embeddings, embeddings.delivered),
    endpoints.OLLAMA_CHAT: Whole(ollama.settle, ollama.delivered),
    endpoints.OLLAMA_GENERATE: Whole(ollama.settle, ollama.delivered),
}


class Plan(NamedTuple):
    """What the request and its upstream mean for a stream's meter.

    `cost_of` gives the number for `usage.cost`, None if the client sees no usage. The rest is as `StreamMeter` has it;
    `gathers`: the client gets one answer.
    """

    endpoint: str
    cost_of: CostOf | None = None
    has_stop_texts: bool = False
    outputs: Outputs = Outputs()
    hides_usage: bool = False
    reports_each_output: bool = False
    gathers: bool = False
    hides_running: bool = False


def is_stream(endpoint: str, content_type: bytes) -> bool:
    """Tell whether an answer with this content type is metered as a stream."""
    kind = content_type.lower()
    if endpoint in endpoints.PROMPT_ONLY:
        return False
    return kind.startswith(_EVENTS) or (endpoint in endpoints.OLLAMA and kind.startswith(_LINES))


def stream_meter(plan: Plan, content_type: bytes) -> Meter:
    """Return the meter of a stream (`is_stream`).

    Server-sent events under an `/api` path are a chat of OpenAI's shape: llama.cpp builds that have the path mean that.
    """
    if plan.gathers:
        return _gatherer(plan)
    if plan.endpoint == endpoints.RESPONSES:
        return ResponsesMeter(cost_of=plan.cost_of, has_stop_texts=plan.has_stop_texts)
    if plan.endpoint == endpoints.MESSAGES:
        return MessagesMeter(cost_of=plan.cost_of, has_stop_texts=plan.has_stop_texts)
    if plan.endpoint in endpoints.OLLAMA and not content_type.lower().startswith(_EVENTS):
        return OllamaMeter(has_stop_texts=plan.has_stop_texts)
    return StreamMeter(
        hides_usage=plan.hides_usage,
        cost_of=plan.cost_of,
        outputs=plan.outputs,
        adds_outputs=plan.reports_each_output,
        has_stop_texts=plan.has_stop_texts,
        hides_running=plan.hides_running,
    )


def _gatherer(plan: Plan) -> Meter:
    if plan.endpoint == endpoints.RESPONSES:
        return ResponsesGatherer(has_stop_texts=plan.has_stop_texts)
    if plan.endpoint == endpoints.MESSAGES:
        return MessagesGatherer(has_stop_texts=plan.has_stop_texts)
    is_chat = plan.endpoint == endpoints.CHAT
    return Gatherer(plan.outputs, is_chat=is_chat, has_stop_texts=plan.has_stop_texts)


def unnamed_stream(plan: Plan, body: bytes) -> Meter | None:
    """Return a meter that has read a whole body which is a stream though its content type said otherwise.

    None if it is no stream of events, or one without text and report: then it is what it says.
    """
    if b"data:" not in body or plan.endpoint in endpoints.PROMPT_ONLY:
        return None
    meter = stream_meter(plan, _EVENTS)
    try:
        meter.receive(body)
    except StreamError:
        return None
    return None if meter.known_usage() is None and meter.delivered().is_empty else meter


def whole_reader(endpoint: str) -> Whole:
    """Return how to read an answer that is not streamed."""
    return _WHOLE_READERS.get(endpoint, _COMPLETION)
