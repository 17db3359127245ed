"""The table of endings (`proxy/relay/lifecycle.py`), line by line, for both families of streams.

For each: what the client sees, what is billed, and whether the upstream's connection is really closed, or really used
for the next request.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.harness import MODEL, Gateway, Row, Upstream, eventually
from tests.acceptance.raw import CHAT, Answer, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, next_record, plain
from tests.emulators.upstream import (
    Await,
    Close,
    FakeUpstream,
    Gate,
    Record,
    Reset,
    Send,
    Silence,
    Step,
    chat_chunk,
    chunk,
    done,
    event,
    json_answer,
    last_chunk,
    sse_head,
    usage_chunk,
)

MESSAGES: Final = "/v1/messages"
IMPATIENT, HIDING = "impatient", "hiding"
MARK: Final = b": mark"
LEAVES: Final[tuple[Callable[[Raw], None], ...]] = (Raw.close, Raw.reset, Raw.half_close)


@dataclass(frozen=True, slots=True)
class Family:
    """The parts of a stream; `stop_tokens`: what is counted when the last text has come and no report."""

    path: str
    start: Step
    text: Step
    stop: Step
    usage: Step
    terminal: Step
    error: Step
    stop_tokens: int


def typed(kind: str, **more: Any) -> Step:
    """An event of Anthropic's."""
    return event({"type": kind, **more}, name=kind)


OPENAI = Family(
    CHAT,
    start=event(chat_chunk({"role": "assistant", "content": None})),
    text=event(chat_chunk("one")),
    stop=event(chat_chunk({}, finish="stop")),
    usage=event(usage_chunk(70, 5)),
    terminal=done(),
    error=event({"error": {"message": "no", "type": "server_error", "param": None, "code": 500}}),
    stop_tokens=2,
)
ANTHROPIC = Family(
    MESSAGES,
    start=typed(
        "message_start",
        message={"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 70}},
    ),
    text=typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "one"}),
    stop=typed("content_block_stop", index=0),
    usage=typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    terminal=typed("message_stop"),
    error=typed("error", error={"type": "api_error", "message": "no"}),
    stop_tokens=1,
)
FAMILIES = pytest.mark.parametrize("family", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        upstream.always(MESSAGES, json_answer(ANTHROPIC_WHOLE))
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstreams = (
        Upstream(fake.url, "main"),
        Upstream(fake.url, "strict", {IMPATIENT: MODEL}, {"first_byte_timeout_s": 1, "idle_timeout_s": 1}),
        Upstream(fake.url, "vllm", {HIDING: MODEL}, {"kind": "vllm"}),
    )
    with Gateway(tmp_path_factory.mktemp("gateway"), *upstreams) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway."""
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


ANTHROPIC_WHOLE: Final = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "one"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 70, "output_tokens": 5},
}


def asking(gateway: Gateway, family: Family, model: str = MODEL, **fields: Any) -> bytes:
    """A request for a stream, unless the fields say otherwise."""
    return request(gateway.key, body(model=model, max_tokens=99, **{"stream": True, **fields}), path=family.path)


def scripted(fake: FakeUpstream, family: Family, *steps: Step) -> int:
    """Answer the next request of the family so; the number of requests before it."""
    fake.script(*steps, path=family.path)
    return len(asked(fake))


def is_used_again(gateway: Gateway, fake: FakeUpstream, record: Record, model: str = MODEL) -> bool:
    """Whether the next request comes on the connection of this one."""
    before = len(asked(fake))
    assert ask(gateway, request(gateway.key, body(model=model))).status == 200
    return next_record(fake, before).connection == record.connection


def is_over(record: Record) -> bool:
    """Whether either side has hung up."""
    return record.client_closed.is_set() or record.finished.is_set()


def billed(row: Row) -> tuple[str, str, int]:
    """What is told of an event."""
    return row["outcome"], row["count_source"], row["output_tokens"]


@FAMILIES
def test_a_client_that_leaves_pays_for_what_was_generated_and_its_upstream_is_closed(
    gateway: Gateway, fake: FakeUpstream, family: Family
) -> None:
    """By FIN, by RST and by half of a close; the connection is gone, and the next request opens another."""
    begun = (sse_head(), family.start, family.text)
    places: dict[str, tuple[tuple[Step, ...], bool, tuple[str, int]]] = {
        "a whole answer, before its first byte": ((), False, ("counted", 0)),
        "before the first byte": ((), True, ("counted", 0)),
        "between tokens": (begun, True, ("counted", 1)),
        "after the last token": ((*begun, family.stop), True, ("counted", family.stop_tokens)),
        "after the usage": ((*begun, family.stop, family.usage), True, ("upstream", 5)),
    }
    for (place, (steps, streams, expected)), leave in itertools.product(places.items(), LEAVES):
        said = (*steps, chunk(MARK + b"\n\n")) if steps else ()
        before = scripted(fake, family, *said, Silence())
        with Raw(gateway) as client:
            client.send(asking(gateway, family, stream=streams))
            record = next_record(fake, before)
            if said:
                client.until(MARK)
            leave(client)
            assert record.client_closed.wait(30), f"{place}: the upstream is told"
        row = gateway.event(record.header("x-request-id") or "")
        assert billed(row) == ("client_closed", *expected), f"{place}, {leave.__name__}"
        assert row["input_tokens"] > 0
        assert record.left_early
        assert not is_used_again(gateway, fake, record), place


@FAMILIES
def test_a_client_that_leaves_when_it_has_all_pays_for_it_and_its_upstream_serves_the_next(
    gateway: Gateway, fake: FakeUpstream, family: Family
) -> None:
    for leave in LEAVES:
        steps = (family.start, family.text, family.stop, family.usage, family.terminal)
        before = scripted(fake, family, sse_head(), *steps, last_chunk())
        with Raw(gateway) as client:
            client.send(asking(gateway, family))
            client.until(b"0\r\n\r\n")
            leave(client)
        record = next_record(fake, before)
        assert billed(gateway.event(record.header("x-request-id") or "")) == ("completed", "upstream", 5)
        assert is_used_again(gateway, fake, record)


@dataclass(frozen=True, slots=True)
class Fault:
    """What an upstream does wrong, and what comes of it: the client's status, what is billed, the connection."""

    name: str
    steps: tuple[Step, ...]
    status: int
    billed: tuple[str, str, int] | None
    is_kept: bool = False
    model: str = MODEL
    streams: bool = True


def faults(family: Family) -> tuple[Fault, ...]:
    """The upstream's half of the table."""
    begun = (sse_head(), family.start, family.text)
    broken = ("upstream_error", "counted", 1)
    answer = ANTHROPIC_WHOLE if family is ANTHROPIC else {"usage": {"prompt_tokens": 70, "completion_tokens": 5}}
    length = len(json_answer(answer).data.partition(b"\r\n\r\n")[2])
    return (
        Fault("reset before a byte", (Reset(),), 502, None),
        Fault("hangs up before a byte", (Close(),), 502, None),
        Fault("garbage for a head", (Send(b"\x16\x03\x01 garbage\r\n\r\n"), Silence()), 502, None),
        Fault("silent", (Silence(),), 504, None, model=IMPATIENT),
        Fault("silent, whole", (Silence(),), 504, None, model=IMPATIENT, streams=False),
        Fault("500 with a body", (json_answer({"error": "x"}, status=500),), 500, None, is_kept=True),
        Fault("503 without", (Send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),), 503, None, is_kept=True),
        Fault("500 of a stream's type", (sse_head(status=500), family.error, last_chunk()), 500, None, is_kept=True),
        Fault("shorter than its length", (json_answer(answer, length=length + 9), Close()), 502, None, streams=False),
        Fault("a head alone", (sse_head(), Reset()), 200, None),
        Fault("reset between tokens", (*begun, Reset()), 200, broken),
        Fault("hangs up between tokens", (*begun, Close()), 200, broken),
        Fault("garbage between tokens", (*begun, Send(b"zz\r\n"), Silence()), 200, broken),
        Fault("stalls between tokens", (*begun, Silence()), 200, broken, model=IMPATIENT),
        Fault("ends without an end", (*begun, last_chunk()), 200, broken, is_kept=True),
        Fault("ends within an event", (*begun, chunk(b'data: {"cho'), last_chunk()), 200, broken, is_kept=True),
        Fault("an error event", (*begun, family.error, last_chunk()), 200, broken, is_kept=True),
        Fault("an error event alone", (sse_head(), family.error, last_chunk()), 200, None, is_kept=True),
    )


@FAMILIES
def test_an_upstream_that_fails_is_billed_for_what_it_delivered_and_closed_unless_it_is_fit_for_more(
    gateway: Gateway, fake: FakeUpstream, family: Family
) -> None:
    for fault in faults(family):
        closes = json_answer(
            {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}, headers=(("Connection", "close"),)
        )
        scripted(fake, OPENAI, closes)  # so that the next is on a connection of its own, which is not tried again
        assert ask(gateway, request(gateway.key, body(model=fault.model))).status == 200
        before = scripted(fake, family, *fault.steps)
        answer = ask(gateway, asking(gateway, family, fault.model, stream=fault.streams))
        assert answer.status == fault.status, fault.name
        assert len(asked(fake)) == before + 1, f"{fault.name}: it is sent once"
        record = asked(fake)[before]
        if fault.billed is None:
            assert answer.id not in {row["id"] for row in gateway.events()}, fault.name
        else:
            assert billed(gateway.event(answer.id)) == fault.billed, fault.name
        if answer.status == 200:
            assert_told(answer, family, fault.name)
        if not fault.is_kept:
            eventually(partial(is_over, record), f"{fault.name}: the upstream is told, or has hung up itself")
        assert is_used_again(gateway, fake, record, fault.model) is fault.is_kept, fault.name


def assert_told(answer: Answer, family: Family, name: str) -> None:
    """The stream ends with one well-formed error event of its family."""
    told = json.loads(answer.body.rpartition(b"data: ")[2])
    assert answer.body.endswith(b"\n\n"), name
    assert told["error"]["message"], name
    assert (told.get("type") == "error") is (family is ANTHROPIC), name


@FAMILIES
def test_streams_have_their_grace_and_are_ended_and_billed_behind_it(
    database_url: str, tmp_path: Path, family: Family
) -> None:
    """On both engines: the events are in the ledger when the process has ended, and the upstream is told."""
    begun = (sse_head(), family.start, family.text)
    with fake_upstream() as own:
        upstream = Upstream(own.url)
        with Gateway(tmp_path / "g", upstream, database_url=database_url, settings={"shutdown_grace_s": 2}) as gateway:
            gate = Gate()
            before = scripted(own, family, *begun, Await(gate), family.usage, family.terminal, last_chunk())
            with Raw(gateway) as quick, Raw(gateway) as slow:
                for client in (quick, slow):
                    client.send(asking(gateway, family))
                    client.until(b"one")
                    if client is quick:
                        scripted(own, family, *begun, Silence())
                process = gateway.terminate()
                eventually(lambda: gateway.status("/healthz") is None, "it takes no new connections")
                gate.open()
                assert b"stop" in quick.rest() or family is OPENAI
                assert b'"error"' in slow.rest()
                assert process.wait(60) == 0
                gateway.forget()
            assert asked(own)[before + 1].client_closed.wait(30)
            ids = [record.header("x-request-id") or "" for record in asked(own)[before:]]
            assert [billed(gateway.event(one)) for one in ids] == [
                ("completed", "upstream", 5),
                ("stopped", "counted", 1),
            ]


def test_reasoning_that_vllm_does_not_show_is_billed_to_who_leaves_in_the_text_behind_it(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    """Its counts are asked for, and the client does not see them; while it reasons, only the prompt is known."""
    told = {"prompt_tokens": 13, "completion_tokens": 0, "total_tokens": 13}
    role = event(chat_chunk({"role": "assistant", "content": ""}, usage=told))
    text = event(chat_chunk({"content": "one", "reasoning": None}, usage={**told, "completion_tokens": 31}))
    for said, tokens in (((role,), 0), ((role, text), 31)):
        before = scripted(fake, OPENAI, sse_head(), *said, chunk(MARK + b"\n\n"), Silence())
        with Raw(gateway) as client:
            client.send(asking(gateway, OPENAI, HIDING, include_reasoning=False))
            shown = client.until(MARK)
        record = next_record(fake, before)
        assert record.client_closed.wait(30)
        assert record.json()["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert b'"assistant"' in shown
        assert b'"usage"' not in shown
        row = gateway.event(record.header("x-request-id") or "")
        assert (*billed(row), row["input_tokens"]) == ("client_closed", "upstream", tokens, 13)
    before = scripted(fake, OPENAI, plain())
    assert ask(gateway, asking(gateway, OPENAI, HIDING, include_reasoning=False, stream=False)).status == 200
    assert "stream_options" not in next_record(fake, before).json()
