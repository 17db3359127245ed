"""Upstreams that fail, lie or stall: what the client is told, and that the ledger holds the truth."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually, price
from tests.acceptance.raw import CHAT, Answer, Raw, ask, body, request
from tests.acceptance.serving import asked, chat, fake_upstream, next_record, plain, script_chat, streamed
from tests.emulators.upstream import (
    Await,
    Close,
    Drip,
    FakeUpstream,
    Gate,
    Reset,
    Send,
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
from tests.inference.script import ScriptedModel
from tests.support.ports import free_port

PAIR, WEIGHTED, DEAD, IMPATIENT, HASTY = "pair", "weighted", "dead", "impatient", "hasty"
ENCRYPTED, MISNAMED, SEVERAL = "encrypted", "misnamed", "several"
ANSWER = ScriptedModel.answer
ANSWER_TOKENS = ScriptedModel.answer_tokens


@contextmanager
def hanging_up(accepted: list[int]) -> Iterator[int]:
    """A server that hangs up on whoever connects; gives its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                accepted.append(1)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def other() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, other: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    closed = f"http://127.0.0.1:{free_port()}"
    with hanging_up([]) as hasty_port:
        upstreams = (
            Upstream(fake.url, "main"),
            Upstream(closed, "gone", {PAIR: MODEL, DEAD: MODEL}),
            Upstream(other.url, "second", {PAIR: MODEL}),
            Upstream(fake.url, "heavy", {WEIGHTED: MODEL}, {"weight": 3}),
            Upstream(other.url, "light", {WEIGHTED: MODEL}, {"weight": 1}),
            Upstream(fake.url, "strict", {IMPATIENT: MODEL}, {"first_byte_timeout_s": 1, "idle_timeout_s": 1}),
            Upstream(f"http://127.0.0.1:{hasty_port}", "hasty", {HASTY: MODEL}),
            Upstream(f"https://127.0.0.1:{hasty_port}", "encrypted", {ENCRYPTED: MODEL}),
            Upstream("http://a..b:80", "misnamed", {MISNAMED: MODEL}),
            Upstream(fake.url, "several", {SEVERAL: MODEL}, {"kind": "llamacpp"}),
        )
        with Gateway(tmp_path_factory.mktemp("gateway"), *upstreams) as gateway:
            yield gateway


@pytest.fixture
def gateway(shared: Gateway, fake: FakeUpstream) -> Iterator[Gateway]:
    """The module's gateway; a traceback in its log fails the test, and it has to serve after each."""
    yield shared
    left = fake.scripts_left
    while fake.scripts_left:  # so that one failure does not make the tests behind it fail
        with socket.create_connection(("127.0.0.1", fake.port)) as client:
            asked_before = len(fake.requests)
            client.sendall(f"POST {CHAT} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode())
            fake.wait_for_requests(asked_before + 1)
    assert not left, "the upstream was asked as often as the test meant"
    shared.assert_no_failure()
    assert ask(shared, request(shared.key)).status == 200, "it still serves"


def unbilled(gateway: Gateway, answer: Answer) -> bool:
    """Whether a request left no event: what came later than it has one already."""
    after = ask(gateway, request(gateway.key))
    gateway.event(after.id)
    return answer.id not in {row["id"] for row in gateway.events()}


# who is asked


@pytest.mark.parametrize("model", [DEAD, ENCRYPTED, MISNAMED])
def test_no_upstream_that_can_be_reached_is_503_and_free(gateway: Gateway, model: str) -> None:
    answer = ask(gateway, request(gateway.key, body(model=model)))
    assert (answer.status, answer.code) == (503, "no_upstream")
    assert unbilled(gateway, answer)


def test_a_dead_upstream_is_passed_over(gateway: Gateway, other: FakeUpstream) -> None:
    before = len(asked(other))
    answers = [ask(gateway, request(gateway.key, body(model=PAIR))) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert len(asked(other)) == before + 5
    row = gateway.event(answers[0].id)
    assert (row["model"], row["upstream"], row["upstream_model"]) == (PAIR, "second", MODEL)
    assert asked(other)[-1].json()["model"] == MODEL


def test_work_is_shared_by_weight(gateway: Gateway, fake: FakeUpstream, other: FakeUpstream) -> None:
    gate = Gate()
    heavy_before, light_before = len(asked(fake)), len(asked(other))
    for upstream, times in ((fake, 6), (other, 2)):
        upstream.script(Await(gate), plain(), path=CHAT, times=times)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, gateway, request(gateway.key, body(model=WEIGHTED))) for _ in range(8)]
        eventually(lambda: len(asked(fake)) + len(asked(other)) == heavy_before + light_before + 8, "all are asked")
        gate.open()
        assert {answer.result().status for answer in answers} == {200}
    assert len(asked(fake)) - heavy_before == 6
    assert len(asked(other)) - light_before == 2


def test_an_upstream_that_hangs_up_on_everybody_is_a_502_at_once(gateway: Gateway) -> None:
    for _ in range(100):
        answer = ask(gateway, request(gateway.key, body(model=HASTY)))
        assert answer.code in ("upstream_error", "no_upstream")  # it hung up after the request, or before
    assert unbilled(gateway, answer)


# the connection between


def test_a_kept_connection_is_used_again(gateway: Gateway, fake: FakeUpstream) -> None:
    """Discovery has connections of its own, and asks each second where a server is away, as here."""
    before = len(asked(fake))
    for _ in range(5):
        ask(gateway, request(gateway.key))
    assert len({record.connection for record in asked(fake)[before:]}) == 1


@pytest.mark.parametrize("ending", [Close(), Reset()], ids=["fin", "rst"])
def test_a_kept_connection_that_dies_under_a_request_is_replaced_once(
    gateway: Gateway, fake: FakeUpstream, ending: Step
) -> None:
    ask(gateway, request(gateway.key))
    script_chat(fake, ending)
    script_chat(fake, plain(completion=9))
    answer = ask(gateway, request(gateway.key))
    assert answer.json["usage"]["completion_tokens"] == 9
    assert gateway.event(answer.id)["output_tokens"] == 9


def test_a_request_is_not_sent_a_third_time(gateway: Gateway, fake: FakeUpstream) -> None:
    ask(gateway, request(gateway.key))
    before = len(asked(fake))
    script_chat(fake, Close())
    script_chat(fake, Close())
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert len(asked(fake)) == before + 2
    assert unbilled(gateway, answer)


EVIL = json_answer({**chat(1, 1, "of somebody else"), "evil": True})


def test_an_answer_too_many_is_nobodys(gateway: Gateway, fake: FakeUpstream) -> None:
    """Two answers to one request: the second must not become another customer's."""
    script_chat(fake, Send(plain(completion=4).data + EVIL.data))
    script_chat(fake, plain(completion=5))
    first = ask(gateway, request(gateway.key))
    second = ask(gateway, request(gateway.key))
    assert [answer.json["usage"]["completion_tokens"] for answer in (first, second)] == [4, 5]
    assert "evil" not in first.json
    assert "evil" not in second.json


def test_an_answer_on_an_idle_connection_is_nobodys(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    before = script_chat(fake, plain(completion=4), Await(gate), EVIL)
    script_chat(fake, plain(completion=5))
    assert ask(gateway, request(gateway.key)).json["usage"]["completion_tokens"] == 4
    gate.open()
    assert next_record(fake, before).client_closed.wait(20), "the gateway hung up"
    answers = [ask(gateway, request(gateway.key)) for _ in range(3)]
    assert [answer.json["usage"]["completion_tokens"] for answer in answers] == [5, 3, 3]


def test_interim_answers_are_skipped(gateway: Gateway, fake: FakeUpstream) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    script_chat(fake, Send(interim + plain(completion=6).data))
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.header("link")) == (200, None)
    assert gateway.event(answer.id)["output_tokens"] == 6


def test_an_old_server_that_ends_its_answer_by_hanging_up_is_fine(gateway: Gateway, fake: FakeUpstream) -> None:
    whole = plain(completion=6).data.partition(b"\r\n\r\n")[2]
    script_chat(fake, Send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + whole), Close())
    answer = ask(gateway, request(gateway.key))
    assert gateway.event(answer.id)["output_tokens"] == 6


CUT = {
    "before a byte": (b"",),
    "in the head": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",),
    "in the status": (b"HTTP/1.1 2",),
    "after the head": (plain().data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",),
    "in the body": (plain().data[:-20],),
    "in a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + b"x" * 20,),
    "between chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",),
    "no http": (b"SSH-2.0-OpenSSH_9.2p1\r\n",),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",),
    "a length that is none": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",),
    "an endless head": (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000,),
}


@pytest.mark.parametrize("ending", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("sent", CUT.values(), ids=CUT.keys())
def test_a_plain_answer_that_breaks_off_is_502_at_once_and_free(
    gateway: Gateway, fake: FakeUpstream, sent: tuple[bytes], ending: Step
) -> None:
    fake.script(plain(), Close(), path=CHAT)
    ask(gateway, request(gateway.key))  # no kept connection is left over, so that nothing is tried again
    script_chat(fake, *(Send(part) for part in sent if part), ending)
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert unbilled(gateway, answer)


# streams that break


def stream_start(*texts: str) -> tuple[Send, ...]:
    """A stream's head, and a delta for each text."""
    return (sse_head(), *(event(chat_chunk(text)) for text in texts))


def ask_stream(gateway: Gateway, model: str = MODEL, **fields: object) -> Answer:
    """One streamed request."""
    return ask(gateway, request(gateway.key, {**body(model=model, stream=True), **fields}))


ENDINGS = {
    "fin": (Close(),),
    "rst": (Reset(),),
    "fin in a chunk": (Send(b'50\r\ndata: {"choices":[{"index":0,"delta":{"content":"never'), Close()),
    "rst in an event": (chunk(b'data: {"choices":[{"index":0,"delta":{"content":"never'), Reset()),
    "no chunk framing": (Send(b"data: garbage\n\n"), Close()),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_stream_that_breaks_off_ends_with_an_error_event_and_bills_what_was_delivered(
    gateway: Gateway, fake: FakeUpstream, ending: tuple[Step, ...]
) -> None:
    gate = Gate()
    script_chat(fake, *stream_start(*ANSWER.split(" tiny")[:1]), Await(gate), *ending)
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        assert b"Hello! This is the" in client.chunk()
        gate.open()
        last = client.chunk()
        assert client.chunk() == b""
    assert Answer(200, (), last.removeprefix(b"data: ")).code == "upstream_error"
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("upstream_error", "counted", 5)
    assert row["input_tokens"] > 0
    assert row["amount_pico"] == price(row["input_tokens"], 5)


def test_a_stream_that_breaks_off_before_its_first_token_is_free(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, sse_head(), event(chat_chunk({"role": "assistant", "content": None})), Reset())
    answer = ask_stream(gateway)
    assert Answer(200, (), answer.events[-1]).code == "upstream_error"
    assert unbilled(gateway, answer)


def test_a_stream_that_only_hanging_up_ends_is_complete_with_its_usage(gateway: Gateway, fake: FakeUpstream) -> None:
    deltas = [event(chat_chunk(text), chunked=False) for text in ("Hel", "lo")]
    script_chat(
        fake, sse_head(chunked=False), *deltas, event(usage_chunk(7, 2), chunked=False), done(chunked=False), Close()
    )
    answer = ask_stream(gateway)
    assert answer.events[-1] == b"[DONE]"
    row = gateway.event(answer.id)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("completed", 7, 2)


def test_a_stream_that_only_hanging_up_ends_and_that_was_cut_is_told_from_a_whole_one(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    script_chat(fake, sse_head(chunked=False), event(chat_chunk("Hello"), chunked=False), Send(b'data: {"cho'), Close())
    answer = ask_stream(gateway)
    assert Answer(200, (), answer.events[-1]).code == "upstream_error"
    assert gateway.event(answer.id)["outcome"] == "upstream_error"


def test_an_error_event_inside_a_stream_passes_and_bills_what_came_before(gateway: Gateway, fake: FakeUpstream) -> None:
    fault = {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}
    script_chat(fake, *stream_start("Hello", "!"), event(fault), last_chunk())
    answer = ask_stream(gateway)
    assert b"out of memory" in answer.events[2]
    row = gateway.event(answer.id)
    assert (row["outcome"], row["output_tokens"]) == ("upstream_error", 2)


def test_an_error_event_before_any_token_is_free(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, sse_head(), event({"error": {"code": 500, "message": "no"}}), done(), last_chunk())
    answer = ask_stream(gateway)
    assert b'"message":"no"' in answer.events[0]
    assert unbilled(gateway, answer)


def test_a_stream_without_usage_is_counted(gateway: Gateway, fake: FakeUpstream) -> None:
    words = [f"{word} " for word in ANSWER.split(" ")]
    words[-1] = words[-1].rstrip()
    deltas = [event(chat_chunk(word)) for word in words]
    script_chat(fake, sse_head(), *deltas, event(chat_chunk({}, finish="stop")), done(), last_chunk())
    row = gateway.event(ask_stream(gateway).id)
    assert (row["outcome"], row["count_source"]) == ("completed", "counted")
    assert row["output_tokens"] == ANSWER_TOKENS + 1
    assert row["input_tokens"] > 0


def test_a_plain_answer_without_usage_is_counted(gateway: Gateway, fake: FakeUpstream) -> None:
    whole = chat(text=ANSWER)
    del whole["usage"]
    script_chat(fake, json_answer(whole))
    answer = ask(gateway, request(gateway.key))
    row = gateway.event(answer.id)
    assert (row["count_source"], row["output_tokens"]) == ("counted", ANSWER_TOKENS + 1)
    assert answer.json == whole
    assert answer.header("x-weir-amount") == f"{row['amount_pico'] / 10**12:.12f} usd"


def test_an_upstream_that_never_ends_its_stream_after_done_holds_nothing(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    before = script_chat(fake, *streamed("Hi", completion=2)[:-1], Await(gate))
    answer = ask_stream(gateway)
    assert answer.events[-1] == b"[DONE]"
    assert next_record(fake, before).client_closed.wait(20), "the gateway hung up"
    assert gateway.event(answer.id)["output_tokens"] == 2


def test_an_upstream_that_floods_after_done_fills_no_memory(gateway: Gateway, fake: FakeUpstream) -> None:
    before_kib = gateway.rss_kib
    flood = [chunk(b"x" * 1_000_000)] * 64
    before = script_chat(fake, *streamed("Hi", completion=2)[:-1], *flood, last_chunk())
    answer = ask_stream(gateway)
    assert b"data: [DONE]\n\n" in answer.body
    record = next_record(fake, before)
    eventually(lambda: record.finished.is_set() or record.client_closed.is_set(), "the flood is over")
    assert gateway.rss_kib - before_kib < 20_000
    assert gateway.event(answer.id)["output_tokens"] == 2


def test_bytes_that_come_one_by_one_are_the_same_stream(gateway: Gateway, fake: FakeUpstream) -> None:
    raw = b"".join(step.data for step in streamed("Hel", "lo ✓", completion=5))
    script_chat(fake, Drip(raw, pause_ms=0))
    answer = ask_stream(gateway, stream_options={"include_usage": True})
    assert "".join(str(part) for part in answer.events).count("content") == 3
    assert answer.events[-1] == b"[DONE]"
    assert gateway.event(answer.id)["output_tokens"] == 5


# silence


def test_an_upstream_that_says_nothing_is_504_and_free(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, Await(Gate()))
    answer = ask(gateway, request(gateway.key, body(model=IMPATIENT)))
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert next_record(fake, before).client_closed.wait(20)
    assert unbilled(gateway, answer)


def test_a_plain_answer_that_stalls_is_504_and_free(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, Send(plain().data[:-9]), Await(Gate()))
    answer = ask(gateway, request(gateway.key, body(model=IMPATIENT)))
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert next_record(fake, before).client_closed.wait(20)
    assert unbilled(gateway, answer)


def test_a_stream_that_stalls_ends_with_an_error_event_and_bills_what_was_delivered(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    before = script_chat(fake, *stream_start("Hello", "!"), Await(Gate()))
    answer = ask_stream(gateway, IMPATIENT)
    assert Answer(200, (), answer.events[-1]).code == "upstream_timeout"
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(answer.id)
    assert (row["outcome"], row["output_tokens"]) == ("upstream_error", 2)


# what passes, and what does not


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 501, 503, 529])
@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
def test_an_upstreams_own_error_passes_unchanged_and_is_free(
    gateway: Gateway, fake: FakeUpstream, status: int, streams: bool
) -> None:
    fault = b'{"error": {"code": 1, "message":"as it is",  "usage":{"prompt_tokens":5,"completion_tokens":5}}}'
    line = f"HTTP/1.1 {status} Own Words\r\nContent-Type: application/json\r\nRetry-After: 7\r\n".encode()
    script_chat(fake, Send(line + b"Content-Length: %d\r\n\r\n" % len(fault) + fault))
    answer = ask(gateway, request(gateway.key, body(stream=streams)))
    assert (answer.status, answer.body, answer.header("retry-after")) == (status, fault, "7")
    assert answer.header("x-weir-amount") is None
    assert unbilled(gateway, answer)


def test_an_upstream_error_whose_client_leaves_is_free(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, Send(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n{"), Await(Gate()))
    client = Raw(gateway)
    client.send(request(gateway.key))
    record = next_record(fake, before)
    eventually(lambda: record.sent, "the head is sent")
    client.close()
    assert record.client_closed.wait(20)
    request_id = record.header("x-request-id")
    gateway.event(ask(gateway, request(gateway.key)).id)
    assert request_id not in {row["id"] for row in gateway.events()}


def test_an_upstreams_headers_pass_but_for_those_of_the_hop_and_those_that_are_ours(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    headers = (
        ("Connection", "keep-alive, X-Named"),
        ("Keep-Alive", "timeout=5, max=100"),
        ("X-Named", "1"),
        ("Proxy-Authenticate", "Basic"),
        ("X-Request-Id", "theirs"),
        ("X-Weir-Amount", "0.000000000000 usd"),
        ("Server", "llama.cpp"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("X-Custom", "yes"),
    )
    script_chat(fake, json_answer(chat(), headers=headers))
    answer = ask(gateway, request(gateway.key))
    names = [name for name, _ in answer.headers]
    assert not {"connection", "keep-alive", "x-named", "proxy-authenticate"} & set(names)
    assert names.count("set-cookie") == 2
    assert (answer.header("server"), answer.header("x-custom")) == ("llama.cpp", "yes")
    assert answer.header("x-request-id") != "theirs"
    assert answer.header("x-weir-amount") == "0.000000741000 usd"


@pytest.mark.parametrize("status", [201, 203, 299])
def test_every_success_is_metered(gateway: Gateway, fake: FakeUpstream, status: int) -> None:
    """Found by fuzzing: only of a 200 was the stream read."""
    head, *rest = streamed("a", "b", completion=2)
    script_chat(fake, Send(head.data.replace(b"200 OK", b"%d Fine" % status)), *rest)
    answer = ask(gateway, request(gateway.key, body(stream=True)))
    assert answer.status == status
    assert gateway.event(answer.id)["output_tokens"] == 2


@pytest.mark.parametrize("kind", [b"", b"Content-Type: text/plain\r\n", b"Content-Type: application/json\r\n"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cut"])
def test_a_stream_that_does_not_say_so_is_billed(
    gateway: Gateway, fake: FakeUpstream, kind: bytes, is_whole: bool
) -> None:
    """Found by fuzzing: a client that asked for a stream reads it, whatever its content type says."""
    raw = b"".join(step.data for step in streamed(ANSWER, completion=28) if b"HTTP/1.1" not in step.data)
    if not is_whole:
        raw = raw[: raw.index(b"0\r\n\r\n") - len(b"e\r\ndata: [DONE]\n\n\r\n")] + b"0\r\n\r\n"
    script_chat(fake, Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%b\r\n" % kind + raw))
    answer = ask(gateway, request(gateway.key, body(stream=True)))
    assert (answer.status, b"Hello" in answer.body) == (200, True)
    row = gateway.event(answer.id)
    assert row["output_tokens"] == 28


def test_an_upstreams_trailers_are_dropped(gateway: Gateway, fake: FakeUpstream) -> None:
    whole = plain(completion=2).data.partition(b"\r\n\r\n")[2]
    answered = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"%x\r\n%b\r\n0\r\nX-Late: 1\r\n\r\n" % (len(whole), whole)
    script_chat(fake, Send(answered + framed))
    answer = ask(gateway, request(gateway.key))
    assert answer.header("x-late") is None
    assert gateway.event(answer.id)["output_tokens"] == 2
    assert ask(gateway, request(gateway.key)).status == 200


def test_several_outputs_of_a_llamacpp_that_was_not_recognised_are_all_billed(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    """It reports the usage of the first only; a model server may be exchanged between two questions of discovery."""
    both = chat(7, ANSWER_TOKENS + 1, ANSWER)
    choice = {"index": 1, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    both["choices"] = [*both["choices"], choice]  # type: ignore[misc]
    script_chat(fake, json_answer(both, headers=(("Server", "llama.cpp"),)))
    answer = ask(gateway, request(gateway.key, body(n=2)))
    row = gateway.event(answer.id)
    assert (row["count_source"], row["output_tokens"]) == ("counted", 2 * (ANSWER_TOKENS + 1))


def test_an_empty_answer_does_not_hang(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.body) == (200, b"")
    assert gateway.event(answer.id)["output_tokens"] == 0


ODD: tuple[object, ...] = (
    None,
    1,
    "text",
    [],
    [{}],
    {},
    {"choices": None},
    {"choices": "x"},
    {"choices": {"0": {}}},
    {"choices": [None, 1, "x", []]},
    {"choices": [{"index": "0", "delta": None}]},
    {"choices": [{"index": -1, "delta": {"content": 7}}]},
    {"choices": [{"index": 10**30, "delta": {"content": ["a", {"text": 1}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [None, {"index": None, "function": None}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": [], "function": {"arguments": {"a": 1}}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": {"a": 1}}, "logprobs": {"content": 5, "x": [1]}}]},
    {"choices": [{"index": 0, "finish_reason": {"a": 1}, "logprobs": []}]},
    {"usage": "none"},
    {"usage": {"prompt_tokens": "7", "completion_tokens": None}},
    {"usage": {"prompt_tokens": 1.5, "completion_tokens": -3, "prompt_tokens_details": []}},
    {"usage": {"prompt_tokens": 10**30, "completion_tokens": 10**30}},
    {"usage": {}},
    {"timings": {"prompt_n": [], "predicted_n": {}}},
    {"error": None},
    {"error": "x"},
)


@pytest.mark.parametrize("ending", [(done(), last_chunk()), (last_chunk(),), (Close(),)], ids=["done", "end", "cut"])
@pytest.mark.parametrize("streams", [True, False], ids=["stream", "gathered"])
def test_odd_events_neither_hang_nor_break_the_gateway(
    gateway: Gateway, fake: FakeUpstream, streams: bool, ending: tuple[Step, ...]
) -> None:
    """Each alone behind a good delta, and all together; streamed on, or gathered into one answer."""
    content = body(model=SEVERAL, stream=streams, n=2)
    for odd in (*((one,) for one in ODD), ODD):
        script_chat(fake, *stream_start("a"), *(event(one) for one in odd), *ending)
        answer = ask(gateway, request(gateway.key, content))
        assert answer.status in (200, 502)
        if answer.status == 200 and streams:
            row = gateway.event(answer.id)
            assert row["amount_pico"] > 0, "what was delivered is billed"


def test_odd_answers_neither_hang_nor_break_the_gateway(gateway: Gateway, fake: FakeUpstream) -> None:
    for odd in ODD:
        script_chat(fake, json_answer(odd))
        answer = ask(gateway, request(gateway.key))
        assert answer.status == 200
        is_error = isinstance(odd, dict) and bool(odd.get("error"))
        assert unbilled(gateway, answer) == is_error
