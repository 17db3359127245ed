"""Upstreams that compress although they were asked not to: plain bytes for the client, each token billed."""

import asyncio
import gzip
import zlib
from collections.abc import Iterator

import pytest
import uvloop

from billing.config import Upstream as UpstreamConfig
from proxy.relay.connection import Pool, UpstreamConnection
from proxy.relay.discovery import ask as ask_upstream
from tests.acceptance.harness import MODEL, Gateway
from tests.acceptance.raw import Raw, ask, body, request
from tests.acceptance.serving import (
    MODELS,
    fake_upstream,
    gateway_before,
    next_record,
    plain,
    script_chat,
)
from tests.acceptance.test_gateway_connections import Heard
from tests.emulators.upstream import (
    Await,
    Close,
    FakeUpstream,
    Gate,
    Send,
    chat_chunk,
    chunk,
    event,
    json_answer,
    last_chunk,
    sse_head,
    usage_chunk,
)

GZIP, ZLIB, BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
PACKED = {"gzip": GZIP, "deflate": ZLIB, "Deflate": BARE}
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_before(fake, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()


def packed(data: bytes, bits: int) -> bytes:
    """The bytes, compressed."""
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


def body_of(step: Send) -> bytes:
    """The body of a whole answer."""
    return step.data.partition(b"\r\n\r\n")[2]


def answered(coding: str, raw: bytes, status: int = 200) -> Send:
    """A whole JSON answer whose body is `raw`."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Encoding: {coding}\r\n"
    return Send(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)


@pytest.mark.parametrize(("coding", "bits"), PACKED.items(), ids=["gzip", "zlib", "bare"])
def test_a_whole_answer_is_plain_and_billed(gateway: Gateway, fake: FakeUpstream, coding: str, bits: int) -> None:
    for _ in range(2):  # the second on the connection of the first
        script_chat(fake, answered(coding, packed(body_of(plain(completion=11)), bits)))
        answer = ask(gateway, request(gateway.key))
        assert answer.json["choices"][0]["message"]["content"] == "hello"
        assert answer.json["usage"]["completion_tokens"] == 11
        assert answer.header("content-encoding") is None
        assert gateway.event(answer.id)["output_tokens"] == 11


def events() -> list[bytes]:
    """The events of a stream, as bytes."""
    deltas = [chat_chunk(f"word {number} ") for number in range(30)]
    steps = [event(one, chunked=False) for one in (*deltas, chat_chunk({}, finish="stop"), usage_chunk(7, 31))]
    return [*(step.data for step in steps), b"data: [DONE]\n\n"]


@pytest.mark.parametrize("size", [1, 7, 10**6], ids=["byte by byte", "seven", "at once"])
@pytest.mark.parametrize(("coding", "bits"), PACKED.items(), ids=["gzip", "zlib", "bare"])
def test_a_stream_is_the_same_as_if_it_had_come_plain(
    gateway: Gateway, fake: FakeUpstream, coding: str, bits: int, size: int
) -> None:
    raw = packed(b"".join(events()), bits)
    pieces = [chunk(raw[at : at + size]) for at in range(0, len(raw), size)]
    script_chat(fake, sse_head(headers=(("Content-Encoding", coding),)), *pieces, last_chunk())
    one = ask(gateway, request(gateway.key, body(stream=True)))
    script_chat(fake, sse_head(), chunk(b"".join(events())), last_chunk())
    other = ask(gateway, request(gateway.key, body(stream=True)))
    assert one.body == other.body
    assert one.events[-1] == b"[DONE]"
    assert one.header("content-encoding") is None
    assert gateway.event(one.id)["output_tokens"] == 31


def test_no_event_waits_for_the_next(gateway: Gateway, fake: FakeUpstream) -> None:
    """Each event leaves when its compressed bytes have come; a client that leaves pays for those."""
    packer, gate = zlib.compressobj(wbits=GZIP), Gate()
    parts = [chunk(packer.compress(one) + packer.flush(zlib.Z_SYNC_FLUSH)) for one in events()[:3]]
    before = script_chat(fake, sse_head(headers=(("Content-Encoding", "gzip"),)), *parts, Await(gate))
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        got = b""
        while got.count(b"\n\n") < 3:
            got += client.chunk()
    assert got == b"".join(events()[:3])
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"]) == ("client_closed", "counted")
    assert row["output_tokens"] > 0


CUT = packed(body_of(plain()), GZIP)
BROKEN: dict[str, tuple[Send | Close, ...]] = {
    "cut, and said to be whole": (answered("gzip", CUT[:-9]),),
    "a wrong sum": (answered("gzip", CUT[:-8] + bytes(8)),),
    "no gzip": (answered("gzip", body_of(plain())),),
    "something behind": (answered("gzip", CUT + b"{}"),),
    "brotli": (answered("br", b"\x8b\x02\x80{}\x03"),),
    "zstd": (answered("zstd", b"\x28\xb5\x2f\xfd"),),
    "twice": (answered("gzip, gzip", CUT),),
    "ended by the close, cut": (
        Send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n" + CUT[:-9]),
        Close(),
    ),
    "in two fields": (
        Send(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
            % (len(CUT), CUT)
        ),
    ),
}


@pytest.mark.parametrize("steps", BROKEN.values(), ids=BROKEN.keys())
def test_what_can_not_be_read_is_502_and_free(
    gateway: Gateway, fake: FakeUpstream, steps: tuple[Send | Close, ...]
) -> None:
    script_chat(fake, *steps)
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.code) == (502, "upstream_error")
    after = ask(gateway, request(gateway.key))
    gateway.event(after.id)
    assert answer.id not in {row["id"] for row in gateway.events()}


def test_a_body_that_the_close_ends_is_whole_if_its_gzip_is(gateway: Gateway, fake: FakeUpstream) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n"
    script_chat(fake, Send(head + CUT), Close())
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, gateway.event(answer.id)["output_tokens"]) == (200, 3)


def test_an_empty_body_that_is_called_gzip_is_empty(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, answered("gzip", b""))
    assert ask(gateway, request(gateway.key)).body == b""


def test_an_error_is_passed_plain(gateway: Gateway, fake: FakeUpstream) -> None:
    text = b'{"error": {"message": "no"}}'
    script_chat(fake, answered("gzip", packed(text, GZIP), 400))
    answer = ask(gateway, request(gateway.key))
    assert (answer.status, answer.body, answer.header("content-encoding")) == (400, text, None)


def test_a_bomb_grows_nothing(gateway: Gateway, fake: FakeUpstream) -> None:
    """A hundred thousand bytes that say they are a hundred million: one event without end."""
    before = gateway.rss_kib
    bomb = packed(b"data: " + bytes(100 * 2**20), GZIP)
    script_chat(fake, sse_head(headers=(("Content-Encoding", "gzip"),)), chunk(bomb), Await(Gate()))
    answer = ask(gateway, request(gateway.key, body(stream=True)))
    assert b'"upstream_error"' in answer.body
    assert gateway.rss_kib - before < 80 * 1024


def test_a_client_that_does_not_read_holds_a_compressed_stream_back(gateway: Gateway, fake: FakeUpstream) -> None:
    """100 MB of events from 300 KB: what the client does not take stays compressed."""
    deltas = b"".join(events()[:30]) * 20_000
    raw = packed(deltas, GZIP)
    before = gateway.rss_kib
    script_chat(fake, sse_head(headers=(("Content-Encoding", "gzip"),)), chunk(raw), Await(Gate()))
    with Raw(gateway, receive_buffer=8_192) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        for _ in range(5):  # another stream goes on meanwhile, and each of its answers is a moment later
            assert ask(gateway, request(gateway.key)).status == 200
        assert gateway.rss_kib - before < 40 * 1024
    assert gateway.event(answer.id)["output_tokens"] > 0


def test_a_slow_listener_gets_every_byte_of_it() -> None:
    """It pauses after each piece; the pieces are those of the whole, and the connection is used again."""
    whole = json_answer({"text": "abc" * 300_000}, compressed=True)

    async def test(fake: FakeUpstream) -> None:
        loop = asyncio.get_running_loop()
        pool = Pool(UpstreamConfig(name="fake", url=fake.url), loop)
        for _ in range(2):
            fake.script(whole)
            listener = Slow()
            pool.request(listener)
            assert await asyncio.wait_for(listener.end, 20) == "ended"
            assert gzip.decompress(body_of(whole)) == listener.body
            assert listener.pauses > 10
        assert fake.connections == 1
        pool.close()

    with fake_upstream() as fake, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test(fake))


class Slow(Heard):
    """A listener that pauses after each piece, and goes on a little later."""

    def __init__(self) -> None:
        """Nothing was heard yet."""
        super().__init__()
        self.pauses = 0

    def data(self, data: bytes) -> None:
        """Pause."""
        super().data(data)
        self.pauses += 1
        assert self._connection is not None
        self._connection.pause()
        asyncio.get_running_loop().call_later(0.001, self._connection.resume)


def test_discovery_reads_a_compressed_answer() -> None:
    with FakeUpstream() as fake:
        for coding, bits in (("gzip", GZIP), ("deflate", ZLIB)):
            fake.script(answered(coding, packed(body_of(MODELS), bits)))
            found = ask_upstream(UpstreamConfig(name="x", url=fake.url))
            assert found is not None
            assert found.models == (MODEL,)


def test_an_end_that_comes_while_the_listener_is_slow_waits_for_what_came_before() -> None:
    """A read may be on its way already when reading is paused."""
    raw = packed(b"abc" * 100_000, GZIP)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def test(fake: FakeUpstream) -> None:
        loop = asyncio.get_running_loop()
        pool = Pool(UpstreamConfig(name="fake", url=fake.url), loop)
        _, connection = await loop.create_connection(lambda: UpstreamConnection(pool), "127.0.0.1", fake.port)
        listener = Heard(pauses=True)
        connection.serve(listener)
        connection.data_received(head + chunk(raw).data)
        connection.data_received(b"0\r\n\r\n")
        while not listener.end.done():
            connection.resume()
            await asyncio.sleep(0)
        assert (await listener.end, listener.body) == ("ended", b"abc" * 100_000)
        connection.abort()
        pool.close()

    with fake_upstream() as fake, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test(fake))
