"""A programmable model server for what a real one cannot be made to do on demand.

A test scripts, request by request, the exact bytes and the exact moments: a delta, then nothing until the
test says go, then a reset. Moments are gates that the test opens, never sleeps. What the client did is
recorded.

It knows nothing of the product and invents no protocol: the shapes that it sends come from captures of real
servers, which `replay` also sends as they are.
"""

from tests.emulators.upstream.record import Record
from tests.emulators.upstream.server import FakeUpstream
from tests.emulators.upstream.steps import Await, Close, Drip, Gate, Reset, Send, Silence, Step
from tests.emulators.upstream.wire import (
    chat_chunk,
    chunk,
    done,
    event,
    head,
    json_answer,
    last_chunk,
    ndjson_head,
    ndjson_line,
    replay_steps,
    sse_head,
    stream,
    usage_chunk,
)

__all__ = [
    "Await",
    "Close",
    "Drip",
    "FakeUpstream",
    "Gate",
    "Record",
    "Reset",
    "Send",
    "Silence",
    "Step",
    "chat_chunk",
    "chunk",
    "done",
    "event",
    "head",
    "json_answer",
    "last_chunk",
    "ndjson_head",
    "ndjson_line",
    "replay_steps",
    "sse_head",
    "stream",
    "usage_chunk",
]
