"""A gateway before an upstream that answers anything, and what must hold whatever either side sends."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from proxy.meter import endpoints
from tests.acceptance.harness import Gateway, Row, Upstream, eventually, price
from tests.acceptance.raw import Answer, CutError, Raw, request
from tests.emulators.upstream import Close, FakeUpstream, Reset, Send, json_answer
from tests.fuzz import answered, asked

KINDS: Final = ("openai", "llamacpp", "vllm", "sglang", "ollama")
REFUSED: Final = frozenset({400, 401, 402, 403, 404, 413, 429})
_FAILURES: Final = ("Traceback (most recent call last)", "Exception ignored in", "was never retrieved")
_COUNTERS: Final = (f"{endpoints.CHAT}/input_tokens", f"{endpoints.RESPONSES}/input_tokens")
CHECK_AFTER: Final = 50


class Target:
    """Takes what the dice send; an AssertionError is a find."""

    def __init__(self, gateway: Gateway, fake: FakeUpstream) -> None:
        """Nothing was sent yet."""
        self._gateway, self._fake = gateway, fake
        self._free: list[str] = []
        self._log_at = 0
        self._tries = 0
        self.seen: dict[str, int] = {}

    def answer(self, dice: Random) -> None:
        """A good request, and an answer that may be anything."""
        kind = dice.choice(KINDS)
        path = dice.choice([path for path in sorted(endpoints.ALL) if endpoints.is_served(path, kind)])
        path, body = asked.valid(dice, f"m-{kind}", path)
        sent = answered.answer(dice, path)
        ending = Reset() if dice.random() < 0.1 else Close()
        self._fake.always(path, *(Send(part) for part in sent.parts), ending)
        raw = b"".join(sent.parts)
        what = f"{path} of {kind}: {json.dumps(body)[:200]}\nwas answered {sent.status} {sent.kind} {raw!r}"
        try:
            with Raw(self._gateway) as client:
                got = client.ask(request(self._gateway.key, body, path=path))
        except CutError as cut:
            raise AssertionError(f"the answer was cut: {cut}\n{what}") from None
        except AssertionError as error:
            raise AssertionError(f"the answer is no HTTP: {error}\n{what}") from None
        self._judge(path, got, what, streams=bool(body.get("stream")))
        if sent.is_honest:
            assert got.status in (sent.status, 502), f"{got.status} {got.body[:300]!r}\n{what}"
        self._count()

    def _judge(self, path: str, got: Answer, what: str, *, streams: bool) -> None:
        """Whoever got text pays for it, once and more than nothing; what is no success is free."""
        self._note(f"answer {got.status}")
        if not 200 <= got.status < 300 or path == endpoints.COUNT_TOKENS:
            assert b"Internal Server Error" not in got.body, f"{got.body!r}\n{what}"
            self._free.append(got.id)
            return
        row = self._row(got.id)
        kinds = [value for name, value in got.headers if name == "content-type"]
        text = answered.texts(path, kinds[0] if kinds else "", got.body, streams=streams)
        if text:
            self._note("text")
            assert row is not None, f"free text {text[:99]!r} in {got.body[:2000]!r}\n{what}"
            is_marked = row["anomaly"] == "negative"  # clamped to 0 by the contract, and shown
            assert row["output_tokens"] > 0 or is_marked, f"{row}, text {text[:99]!r} in {got.body[:2000]!r}\n{what}"
            assert row["amount_pico"] > 0, f"{row}, text {text[:99]!r}\n{what}"
        if row is not None:
            self._judge_row(row, what)

    def _judge_row(self, row: Row, what: str) -> None:
        names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
        assert all(0 <= row[name] <= 10**9 for name in names), f"{row}\n{what}"
        assert row["cached_input_tokens"] <= row["input_tokens"], f"{row}\n{what}"
        assert row["reasoning_tokens"] <= row["output_tokens"], f"{row}\n{what}"
        assert row["amount_pico"] == price(row["input_tokens"], row["output_tokens"]), f"{row}\n{what}"
        assert row["outcome"] in ("completed", "upstream_error"), f"{row}\n{what}"

    def request(self, dice: Random) -> None:
        """A bent body; the upstream is well."""
        kind = dice.choice(KINDS)
        path, raw = asked.mutated(dice, f"m-{kind}")
        self._stand(dice, path)
        what = f"{path} of {kind}: {raw[:2000]!r}"
        before = len(self._fake.requests)
        with Raw(self._gateway) as client:
            got = client.ask(request(self._gateway.key, raw, path=path))
        self._note(f"request {got.status}")
        assert got.status == 200 or got.status in REFUSED, f"{got.status} {got.body[:300]!r}\n{what}"
        posts = [record for record in self._fake.requests[before:] if record.path == path]
        if got.status != 200:
            assert not posts, f"{got.status}, but the upstream was asked\n{what}"
            self._free.append(got.id)
        else:
            (record,) = posts
            self._judge(path, got, what, streams=bool(record.json().get("stream")))
            assert isinstance(record.json(), dict), what
            assert record.json()["model"].startswith("own-"), f"{record.json()['model']!r}\n{what}"
        self._count()

    def http(self, dice: Random) -> None:
        """Bytes that are hardly a request."""
        path, raw = asked.mutated(dice, f"m-{dice.choice(KINDS)}")
        self._stand(dice, path)
        raw = asked.http(dice, self._gateway.key.secret, path, raw)
        got = b""
        client = Raw(self._gateway)
        with contextlib.suppress(OSError):
            client.send(raw)
            client.half_close()
            got = client.rest()
        client.close()
        line = got.partition(b"\r\n")[0]
        self._note(f"http {line[9:12].decode('latin-1')}")
        assert not got or got.startswith(b"HTTP/1.1 "), f"{got[:200]!r}\n{raw!r}"
        assert line[9:12] != b"500", f"{got[:400]!r}\n{raw!r}"
        self._count()

    def check(self) -> None:
        """What shows only behind: the log, what had to be free, places that were not given back."""
        with self._gateway.log_path.open("rb") as log:
            log.seek(self._log_at)
            new = log.read()
        self._log_at += len(new)
        text = new.decode("utf-8", "replace")
        assert not any(mark in text for mark in _FAILURES), f"the gateway failed:\n{text[-6000:]}"
        eventually(lambda: "weir_requests_in_flight 0\n" in self._gateway.page("/metrics"), "all is given back")
        if self._free:
            ids = ", ".join(f"'{one}'" for one in self._free)
            billed = self._gateway.rows(f"SELECT * FROM usage_events WHERE id IN ({ids})")
            assert not billed, f"billed though refused: {billed}"
        self._free.clear()
        self._fake.forget_requests()

    def _stand(self, dice: Random, path: str) -> None:
        fitting = [one for one in answered.good() if one.path == path]
        one = dice.choice(fitting)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {one.kind}\r\nContent-Length: {len(one.body)}\r\n\r\n"
        self._fake.always(path, Send(head.encode() + one.body))

    def _row(self, request_id: str) -> Row | None:
        """The event of an answer that is whole: it was recorded before the last byte left."""
        rows = self._gateway.rows(f"SELECT * FROM usage_events WHERE id = '{request_id}'")
        return rows[0] if rows else None

    def _note(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def _count(self) -> None:
        self._tries += 1
        if self._tries % CHECK_AFTER == 0:
            self.check()


@contextlib.contextmanager
def running(home: Path) -> Iterator[Target]:
    """A gateway with an upstream of each kind, all of them one fake; its sums are checked at the end."""
    with FakeUpstream() as fake:
        fake.always("/v1/models", json_answer({"object": "list", "data": [{"id": "own", "object": "model"}]}))
        for path in _COUNTERS:
            fake.always(path, json_answer({"input_tokens": 11}))
        options: dict[str, Any] = {"first_byte_timeout_s": 5, "idle_timeout_s": 5}
        upstreams = [
            Upstream(fake.url, kind, {f"m-{kind}": f"own-{kind}"}, {"kind": kind, **options}) for kind in KINDS
        ]
        with Gateway(home, *upstreams) as gateway:
            target = Target(gateway, fake)
            yield target
            target.check()
            gateway.assert_sums_agree()
