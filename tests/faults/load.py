"""Many clients at once on bare sockets, who note each answer that they received whole, until the gateway is gone.

An answer is whole when its framing says so: all bytes of its length, or the last chunk. Whatever else comes is noted as
a failure, and the client tries again on a new connection.
"""

import asyncio
import json
import random
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.acceptance.harness import MODEL, Gateway, Key, Row, eventually, price
from tests.acceptance.raw import CHAT, request
from tests.bench.processes import status_of
from tests.bench.programs import build
from tests.support.ports import free_port

ANSWER_LIMIT_S: Final = 60
RETRY_PAUSE_S: Final = 0.02
_USAGE: Final = re.compile(rb'"prompt_tokens":(\d+),"completion_tokens":(\d+)')


@contextmanager
def stand_in(cache: Path) -> Iterator[str]:
    """The URL of the benchmark's model server: one that is never the slowest."""
    port = free_port()
    program = build(cache).upstream
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", str(program), str(port)]) as process:
        try:
            eventually(lambda: status_of(port, "/v1/models") == 200, "the stand-in serves")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Whole:
    """One answer that a client received whole, and the usage that was in it."""

    id: str
    input_tokens: int
    output_tokens: int
    is_stream: bool


@dataclass(slots=True)
class Seen:
    """What the clients have seen until now."""

    whole: list[Whole] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    broken: int = 0


class Load:
    """Clients in a thread of their own; a context manager. Half of what they ask is streamed."""

    def __init__(self, gateway: Gateway, *, clients: int = 24, seed: int = 1, key: Key | None = None) -> None:
        """Nothing runs yet; without a key they ask with the gateway's first."""
        self._gateway = gateway
        self._key = key or gateway.key
        self._random = random.Random(seed)
        self._clients = clients
        self._is_over = False
        self.seen = Seen()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every client finish what it does, and end."""
        self._is_over = True
        self._thread.join(ANSWER_LIMIT_S)
        assert not self._thread.is_alive(), "a client waits for ever"

    def wait_for(self, count: int) -> None:
        """Return when so many more answers were received whole."""
        wanted = len(self.seen.whole) + count
        eventually(lambda: len(self.seen.whole) >= wanted, f"{count} answers; {self.seen.refused}")

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        while not self._is_over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._gateway.port)
            except OSError:
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            try:
                while not self._is_over:
                    async with asyncio.timeout(ANSWER_LIMIT_S):
                        await self._ask(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                self.seen.broken += 1
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request. Raises IncompleteReadError or OSError if its answer is cut."""
        is_stream = self._random.random() < 0.5
        content = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "x" * self._random.randrange(600)}],
            "max_tokens": self._random.randrange(1, 60) if is_stream else 64,
            **({"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}),
        }
        writer.write(request(self._key, content, path=CHAT))
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        request_id = head.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
        body = await self._body(reader, head, request_id)
        if status != 200 or (b"data: [DONE]" not in body and is_stream):
            code = json.loads(body.rpartition(b"data: ")[2])["error"]["code"]
            self.seen.refused[code] += 1
            if is_stream and status == 200:
                self.seen.cut.append(request_id)
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        (usage,) = _USAGE.findall(body)
        self.seen.whole.append(Whole(request_id, int(usage[0]), int(usage[1]), is_stream))

    async def _body(self, reader: asyncio.StreamReader, head: bytes, request_id: str) -> bytes:
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
        if length is not None:
            return await reader.readexactly(int(length[1]))
        assert b"transfer-encoding: chunked" in head
        parts = []
        while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(parts)


def assert_recorded(gateway: Gateway, whole: list[Whole]) -> list[Row]:
    """Fail unless each whole answer is in the ledger once, as it was; gives all events.

    Where its worker was taken for dead meanwhile, that is an interrupted event and the correction that makes it whole.
    """
    events = gateway.events()
    by_id = {row["id"]: row for row in events}
    assert len(by_id) == len(events), "no event is there twice"
    assert len({one.id for one in whole}) == len(whole), "no id was given twice"
    missing = [one.id for one in whole if one.id not in by_id]
    assert not missing, f"{len(missing)} of {len(whole)} answers were given away"
    corrections: dict[str, list[Row]] = {}
    for row in events:
        if row["adjusts"] is not None and row["anomaly"] != "uncovered":
            corrections.setdefault(row["adjusts"], []).append(row)
    for one in whole:
        rows = [by_id[one.id], *corrections.get(one.id, ())]
        inward, outward = (sum(row[name] for row in rows) for name in ("input_tokens", "output_tokens"))
        assert inward == one.input_tokens, rows
        if rows[0]["anomaly"] == "output_exceeds_limit":  # the stand-in knows no limit: what credit affords is billed
            assert outward < one.output_tokens, rows
        else:
            assert outward == one.output_tokens, rows
        assert sum(row["amount_pico"] for row in rows) == price(inward, outward), rows
        assert rows[0]["outcome"] == ("completed" if len(rows) == 1 else "interrupted"), rows
    gateway.assert_sums_agree()
    gateway.weir("audit", "ledger")
    return events
