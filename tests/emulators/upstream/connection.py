"""One client's connection: reads requests, plays their steps, and notices at once when the client leaves."""

import asyncio
import socket
import struct
from typing import Final, Protocol, assert_never

from tests.emulators.upstream.record import Record
from tests.emulators.upstream.steps import Await, Close, Drip, Gate, Reset, Send, Silence, Step

SLICE_BYTES: Final = 16_384
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Answers(Protocol):
    """What a connection asks of its server."""

    def connected(self, connection: "Connection") -> int:
        """Count a new connection and give it its number."""

    def disconnected(self, connection: "Connection") -> None:
        """Forget a connection that is closed."""

    def failed(self, error: BaseException) -> None:
        """Keep the error of a connection that could not be served, as when the request was not HTTP."""

    def steps_for(self, record: Record) -> tuple[Step, ...]:
        """Note the request and choose its answer."""


class _OverError(Exception):
    """The connection is done with: the client left, or a step hung up."""


class Connection(asyncio.Protocol):
    """The socket's side of a script. Lives in the server's thread."""

    def __init__(self, answers: Answers) -> None:
        """Not connected yet."""
        self._answers = answers
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._writable = asyncio.Event()
        self._lost = asyncio.Event()
        self._writable.set()
        self._hung_up = False
        self._current: Record | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self._number = self._answers.connected(self)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"fake-upstream-{self._number}")
        self._task.add_done_callback(self._report)

    def data_received(self, data: bytes) -> None:
        """Keep what came for the parser."""
        self._received += data
        self._arrived.set()

    def eof_received(self) -> bool:
        """The client sends no more. That counts as leaving, as on llama.cpp and vLLM."""
        self._client_left()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._client_left()
        self._writable.set()
        self._lost.set()
        self._answers.disconnected(self)

    def pause_writing(self) -> None:
        """The kernel takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The kernel has taken all."""
        self._writable.set()

    async def cut(self) -> None:
        """End now, whatever the script says, and return when the socket is closed."""
        self._hung_up = True
        self._transport.abort()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._lost.wait()

    def _client_left(self) -> None:
        self._ended.set()
        self._arrived.set()
        if self._current is not None and not self._hung_up:
            self._current.client_closed.set()

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._answers.failed(error)

    async def _serve(self) -> None:
        """Requests one after the other until somebody hangs up."""
        try:
            while True:
                self._current = record = await self._read_request()
                for step in self._answers.steps_for(record):
                    await self._perform(step, record)
                record.finished.set()
        except _OverError:
            pass
        finally:
            self._transport.abort()

    async def _perform(self, step: Step, record: Record) -> None:
        """One step. Raises _OverError when nothing can follow it."""
        match step:
            case Send(data):
                await self._write(data, record)
            case Drip(data, pause_ms):
                for at in range(len(data)):
                    await self._write(data[at : at + 1], record)
                    await asyncio.sleep(pause_ms / 1000)
            case Await(gate):
                await self._pass(gate)
            case Silence():
                await self._ended.wait()
                raise _OverError
            case Close():
                self._hang_up(record)
            case Reset():
                descriptor = self._transport.get_extra_info("socket")
                descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self._hang_up(record)
            case _:
                assert_never(step)

    def _hang_up(self, record: Record) -> None:
        """End the script; `_serve` closes the socket. What was written before is with the kernel already."""
        self._hung_up = True
        record.finished.set()
        raise _OverError

    async def _write(self, data: bytes, record: Record) -> None:
        """Hand bytes to the kernel, slice by slice, and note each slice once it was taken."""
        for at in range(0, len(data), SLICE_BYTES):
            if self._ended.is_set():
                raise _OverError
            part = data[at : at + SLICE_BYTES]
            self._transport.write(part)
            await self._writable.wait()
            if self._lost.is_set():
                raise _OverError
            record.note_sent(part)

    async def _pass(self, gate: Gate) -> None:
        """Wait at the gate, unless the client leaves first."""
        waits = [asyncio.ensure_future(gate.passed()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
        if self._ended.is_set():
            raise _OverError

    async def _read_request(self) -> Record:
        """The next request with its whole body. Raises _OverError when the client leaves before that."""
        head = await self._take_until(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = tuple((key, value.strip()) for key, _, value in (line.partition(":") for line in lines))
        fields = {key.lower(): value for key, value in headers}
        if fields.get("transfer-encoding", "").lower() == "chunked":
            body, coded = await self._take_chunks()
        else:
            body = coded = await self._take(int(fields.get("content-length", "0")))
        record = Record(method=method, path=path, headers=headers, body=body, raw=head + coded, connection=self._number)
        if self._ended.is_set():
            record.client_closed.set()
        return record

    async def _take_chunks(self) -> tuple[bytes, bytes]:
        """A chunked body, decoded and as it came (RFC 9112, section 7.1)."""
        body, coded = b"", b""
        while True:
            line = await self._take_until(b"\r\n")
            size = int(line.split(b";")[0], 16)
            data = await self._take(size + 2)
            body, coded = body + data[:size], coded + line + data
            if size == 0:
                return body, coded

    async def _take_until(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            await self._more()
        return await self._take(at + len(mark))

    async def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            await self._more()
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    async def _more(self) -> None:
        if self._ended.is_set():
            raise _OverError
        self._arrived.clear()
        await self._arrived.wait()
