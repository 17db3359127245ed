"""One upstream connection and its pool over real sockets, where the moment decides: lost before use, paused late."""

import asyncio
from collections.abc import Awaitable, Callable

import uvloop

from billing.config import Upstream
from proxy.relay.connection import Pool, UpstreamConnection
from proxy.relay.headers import Headers
from tests.acceptance.serving import fake_upstream, plain, streamed
from tests.emulators.upstream import Close, FakeUpstream, Send

LIMIT_S = 60
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Heard:
    """A listener that asks, writes down what it is told, and may pause as an exchange with a slow client does."""

    def __init__(self, *, pauses: bool = False) -> None:
        """Nothing was heard yet."""
        self._pauses = pauses
        self._connection: UpstreamConnection | None = None
        self.status = 0
        self.body = b""
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def started(self, connection: UpstreamConnection) -> None:
        """Ask."""
        self._connection = connection
        connection.write(ASK)

    def head(self, status: int, headers: Headers) -> None:
        """Note the status."""
        self.status = status

    def data(self, data: bytes) -> None:
        """Note the data; a slow client's buffer is full now."""
        self.body += data
        if self._pauses and self._connection is not None:
            self._connection.pause()

    def ended(self) -> None:
        """Note the end."""
        self.end.set_result("ended")

    def died(self, *, could_retry: bool) -> None:
        """Note the death."""
        self.end.set_result("died, could retry" if could_retry else "died")


def run(test: Callable[[FakeUpstream, Pool], Awaitable[None]]) -> None:
    """Run a test on uvloop, as the gateway does."""

    async def main(fake: FakeUpstream) -> None:
        pool = Pool(Upstream(name="fake", url=fake.url), asyncio.get_running_loop())
        async with asyncio.timeout(LIMIT_S):
            await test(fake, pool)
        pool.close()

    with fake_upstream() as fake, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(fake))


def test_a_connection_that_was_lost_before_its_use_says_so() -> None:
    async def test(fake: FakeUpstream, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(lambda: UpstreamConnection(pool), "127.0.0.1", fake.port)
        while not fake.connections:
            await asyncio.sleep(0)
        transport.abort()
        for _ in range(5):
            await asyncio.sleep(0)  # the loop tells the connection
        listener = Heard()
        connection.serve(listener)
        assert await listener.end == "died"
        fake.wait_for_open_connections(0)

    run(test)


def test_a_connection_that_was_paused_at_the_end_of_its_answer_is_read_again_when_it_is_used_again() -> None:
    async def test(fake: FakeUpstream, pool: Pool) -> None:
        for _ in range(3):
            listener = Heard(pauses=True)
            pool.request(listener)
            assert await listener.end == "ended"
            assert listener.status == 200
        assert fake.connections == 1

    run(test)


def test_after_a_stream_of_llamacpp_the_connection_is_not_kept() -> None:
    """It closes although it promised not to (measured): the next request would have to be sent twice."""

    async def test(fake: FakeUpstream, pool: Pool) -> None:
        pool.keeps_after_stream = False
        fake.script(Send(b"".join(step.data for step in streamed("a"))))
        for connections in (1, 2, 2):
            listener = Heard()
            pool.request(listener)
            assert await listener.end == "ended"
            assert fake.connections == connections

    run(test)


def test_only_a_kept_connection_could_be_tried_again_and_only_before_the_first_byte() -> None:
    async def test(fake: FakeUpstream, pool: Pool) -> None:
        fake.script(plain())
        fake.script(Close())
        fake.script(Close())
        fake.script(plain())
        fake.script(Send(b"HTTP/1.1 200"), Close())
        ends = []
        for _ in range(5):
            listener = Heard()
            pool.request(listener)
            ends.append(await listener.end)
        assert ends == ["ended", "died, could retry", "died", "ended", "died"]

    run(test)
