"""How streams end, and what is billed of those that end badly: prompts that were told, first tokens, last bytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing import clock
from tests.acceptance.harness import MODEL, Gateway, eventually, sqlite_locked
from tests.acceptance.raw import Raw, ask, body, request
from tests.acceptance.serving import asked, chat, fake_upstream, gateway_before, next_record, script_chat
from tests.emulators.upstream import (
    Await,
    FakeUpstream,
    Gate,
    Silence,
    chat_chunk,
    chunk,
    done,
    event,
    json_answer,
    last_chunk,
    sse_head,
    usage_chunk,
)

MESSAGES = "/v1/messages"


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("gateway")
    with gateway_before(fake, home) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway."""
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


def test_the_prompt_of_a_cut_stream_is_billed_as_its_server_told_it(gateway: Gateway, fake: FakeUpstream) -> None:
    """In `message_start`, with its cached part, which costs less."""
    usage = {"input_tokens": 2, "cache_read_input_tokens": 11, "output_tokens": 0}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage}
    block = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
    before = len(asked(fake))
    fake.script(
        sse_head(), event({"type": "message_start", "message": message}), event(block), Silence(), path=MESSAGES
    )
    client = Raw(gateway)
    client.send(request(gateway.key, body(stream=True, max_tokens=9), path=MESSAGES))
    answer = client.head()
    client.until(b"Hello")
    client.close()
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"]) == ("client_closed", "counted")
    assert (row["input_tokens"], row["cached_input_tokens"], row["output_tokens"]) == (13, 11, 1)


@pytest.mark.parametrize("options", [{"stream_options": {"include_usage": True}}, {}], ids=["shown", "hidden"])
def test_who_leaves_between_the_usage_and_the_end_pays_what_was_reported(
    gateway: Gateway, fake: FakeUpstream, options: dict[str, Any]
) -> None:
    """The server has said how much it was: nothing is counted, whether the client saw the report or not."""
    before = len(asked(fake))
    parts = (event(chat_chunk("hi")), event(chat_chunk({}, finish="stop")), event(usage_chunk(70, 3)))
    script_chat(fake, sse_head(), *parts, chunk(b": after the usage\n\n"), Silence())
    client = Raw(gateway)
    client.send(request(gateway.key, body(stream=True, **options)))
    answer = client.head()
    client.until(b": after the usage")
    client.close()
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"]) == ("client_closed", "upstream")
    assert (row["input_tokens"], row["output_tokens"]) == (70, 3)


def test_the_first_token_is_the_first_text_and_no_announcement(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    role = event(chat_chunk({"role": "assistant", "content": None}))
    before = script_chat(
        fake, sse_head(), role, Await(gate), event(chat_chunk("a")), event(usage_chunk(7, 1)), done(), last_chunk()
    )
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        client.until(b'"role"')
        assert len(asked(fake)) == before + 1
        opened_at = clock.now()
        gate.open()
        client.until(b"[DONE]")
    row = gateway.event(answer.id)
    assert opened_at <= row["first_token_at"] <= row["finished_at"]


def test_an_answer_that_is_not_streamed_has_no_first_token(gateway: Gateway) -> None:
    assert gateway.event(ask(gateway, request(gateway.key)).id)["first_token_at"] is None


def test_what_follows_the_terminal_event_leaves_with_it(gateway: Gateway, fake: FakeUpstream) -> None:
    """Also when it comes in a read of its own, as long as the record is awaited."""
    gate = Gate()
    before = script_chat(
        fake,
        *(sse_head(), event(chat_chunk("a")), event(usage_chunk(7, 1)), done(), Await(gate)),
        *(chunk(b": bye\n\n"), last_chunk()),
    )
    with Raw(gateway) as client:
        with sqlite_locked(gateway):
            client.send(request(gateway.key, body(stream=True)))
            client.head()
            record = next_record(fake, before)
            client.until(b'"a"')
            gate.open()
            assert record.finished.wait(20)
            assert gateway.status("/healthz") == 200
        assert client.until(b": bye\n\n").endswith(b"data: [DONE]\n\n: bye\n\n")


def test_an_upstream_that_never_ends_after_its_last_event_is_left(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("a")), event(usage_chunk(7, 1)), done(), Silence())
    answer = ask(gateway, request(gateway.key, body(stream=True)))
    assert answer.events[-1] == b"[DONE]"
    assert next_record(fake, before).client_closed.wait(20)
    assert gateway.event(answer.id)["outcome"] == "completed"


def test_a_stream_that_just_ends_is_billed_as_broken(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, sse_head(), event(chat_chunk("one")), event(chat_chunk(" two")), last_chunk())
    row = gateway.event(ask(gateway, request(gateway.key, body(stream=True))).id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("upstream_error", "counted", 2)


@pytest.mark.parametrize("streams", [True, False])
def test_a_prompt_of_nothing_is_counted(gateway: Gateway, fake: FakeUpstream, *, streams: bool) -> None:
    """The output is billed as it was told."""
    stream = (sse_head(), event(chat_chunk("one")), event(usage_chunk(0, 40)), done(), last_chunk())
    script_chat(fake, *(stream if streams else (json_answer(chat(0, 40)),)))
    row = gateway.event(ask(gateway, request(gateway.key, body("Say hello.", stream=streams, max_tokens=50))).id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("completed", "counted", 40)
    assert row["input_tokens"] >= 4


def test_the_endings_leave_no_connection_open(gateway: Gateway, fake: FakeUpstream) -> None:
    """After all of the above only idle connections are left, which serve the next request."""
    assert ask(gateway, request(gateway.key, body(model=MODEL))).status == 200
    eventually(lambda: fake.open_connections <= 2, "the others are closed")
