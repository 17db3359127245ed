"""Model servers behind Unix sockets and TLS: every way in which Weir talks to them takes the same road."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from billing.cli import probe
from tests.acceptance.harness import MODEL, Gateway, Upstream
from tests.acceptance.raw import CHAT, Raw, ask, body, request
from tests.acceptance.serving import MODELS, fake_upstream, plain, streamed
from tests.emulators.upstream import Await, FakeUpstream, Gate, chat_chunk, event, json_answer, sse_head
from tests.support.certificates import Authority, Pair, server_context

PREFIXED, FOUND, GONE = "prefixed", MODEL, "gone"
TRUSTED, UNTRUSTED, OTHER_NAME, SHOWN, NOT_SHOWN = "trusted", "untrusted", "other-name", "shown", "not-shown"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's folder; short, for a socket's path has 107 bytes."""
    return tmp_path_factory.mktemp("g")


@pytest.fixture(scope="module")
def local(home: Path) -> Iterator[FakeUpstream]:
    """A server on a Unix socket, at its root and under a path."""
    with fake_upstream(socket_path=home / "a.sock") as fake:
        for path in ("", "/qwen"):
            fake.always(f"{path}/v1/models", MODELS)
            fake.always(f"{path}{CHAT}", plain())
            fake.always(f"{path}{CHAT}/input_tokens", json_answer({"input_tokens": 77}))
        yield fake


@dataclass(frozen=True)
class Servers:
    """Servers with certificates, and those who signed."""

    authority: Authority
    client: Pair
    open: FakeUpstream
    closed: FakeUpstream
    misnamed: FakeUpstream


@pytest.fixture(scope="module")
def servers(home: Path) -> Iterator[Servers]:
    authority = Authority.make(home / "ca")
    client = authority.sign("client", "DNS:weir")
    good = authority.sign("server", "IP:127.0.0.1")
    other = authority.sign("other", "DNS:other.example,IP:127.0.0.2")
    with (
        fake_upstream(tls=server_context(good)) as open_,
        fake_upstream(tls=server_context(good, clients=authority)) as closed,
        fake_upstream(tls=server_context(other)) as misnamed,
    ):
        yield Servers(authority, client, open_, closed, misnamed)


@pytest.fixture(scope="module")
def shared(home: Path, local: FakeUpstream, servers: Servers) -> Iterator[Gateway]:
    stranger = Authority.make(home / "stranger")
    trusts: dict[str, int | str] = {"ca_file": "ca/ca.pem"}  # relative to the configuration
    shows: dict[str, int | str] = {"client_cert": str(servers.client.cert), "client_key": str(servers.client.key)}
    upstreams = (
        Upstream(local.url, "found", {}, {"kind": "llamacpp"}),
        Upstream(f"{local.url}:/qwen/v1", "prefixed", {PREFIXED: MODEL}),
        Upstream(f"unix://{home}/none.sock", "gone", {GONE: MODEL}),
        Upstream(servers.open.url, "trusted", {TRUSTED: MODEL}, trusts),
        Upstream(servers.open.url, "untrusted", {UNTRUSTED: MODEL}, {"ca_file": str(stranger.cert)}),
        Upstream(servers.misnamed.url, "misnamed", {OTHER_NAME: MODEL}, trusts),
        Upstream(servers.closed.url, "shown", {SHOWN: MODEL}, {**trusts, **shows}),
        Upstream(servers.closed.url, "not-shown", {NOT_SHOWN: MODEL}, trusts),
    )
    with Gateway(home, *upstreams) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()


@pytest.mark.parametrize(("model", "path"), [(FOUND, CHAT), (PREFIXED, f"/qwen{CHAT}")])
def test_a_server_on_a_unix_socket_is_one_like_any_other(
    gateway: Gateway, local: FakeUpstream, model: str, path: str
) -> None:
    """The first was found by its /v1/models on the socket; connections are kept, and the path goes before."""
    local.script(plain(completion=5), path=path)
    answers = [ask(gateway, request(gateway.key, body(model=model))) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert [gateway.event(answer.id)["output_tokens"] for answer in answers] == [5, 3]
    local.script(*streamed("a", "b", completion=9), path=path)
    answer = ask(gateway, request(gateway.key, body(model=model, stream=True)))
    assert answer.events[-1] == b"[DONE]"
    assert gateway.event(answer.id)["output_tokens"] == 9
    record = local.requests[-1]
    assert (record.path, record.header("host")) == (path, "localhost")


def test_a_prompt_is_counted_through_the_socket(gateway: Gateway, local: FakeUpstream) -> None:
    local.script(sse_head(), event(chat_chunk("a")), Await(Gate()), path=CHAT)
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        client.chunk()
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"], row["input_tokens"]) == ("client_closed", "counted", 77)


def test_a_socket_without_a_server_is_503(gateway: Gateway) -> None:
    answer = ask(gateway, request(gateway.key, body(model=GONE)))
    assert (answer.status, answer.code) == (503, "no_upstream")
    assert "upstream.unreachable upstream=gone" in gateway.log


def test_init_knows_a_server_on_a_socket(gateway: Gateway, local: FakeUpstream) -> None:
    assert probe.ask(local.url) == probe.Server(local.url, "auto", (MODEL,))
    assert probe.ask(f"{local.url}:/qwen") == probe.Server(f"{local.url}:/qwen", "auto", (MODEL,))


@pytest.mark.parametrize("model", [TRUSTED, SHOWN])
def test_a_server_with_a_certificate_of_its_own_authority_is_trusted(gateway: Gateway, model: str) -> None:
    answer = ask(gateway, request(gateway.key, body(model=model)))
    assert answer.status == 200
    assert gateway.event(answer.id)["upstream"] == model


@pytest.mark.parametrize("model", [UNTRUSTED, OTHER_NAME, NOT_SHOWN])
def test_a_server_that_can_not_be_trusted_gets_no_request(gateway: Gateway, servers: Servers, model: str) -> None:
    """Another authority's, another host's, or it wants a certificate that was not given; the log says which."""
    asked = [len(server.requests) for server in (servers.open, servers.misnamed, servers.closed)]
    answer = ask(gateway, request(gateway.key, body(model=model)))
    assert (answer.status, answer.code) == (503, "no_upstream")
    posts = [
        record
        for server, before in zip((servers.open, servers.misnamed, servers.closed), asked, strict=True)
        for record in server.requests[before:]
        if record.method == "POST"
    ]
    assert posts == []
    name = "misnamed" if model == OTHER_NAME else model
    (line,) = [line for line in gateway.log.splitlines() if f"upstream.unreachable upstream={name} " in line]
    assert ("CERTIFICATE_VERIFY_FAILED" in line) == (model != NOT_SHOWN)


def test_it_does_not_start_with_a_certificate_that_can_not_be_read(home: Path, servers: Servers) -> None:
    folder = home / "broken"
    (folder / "tls").mkdir(parents=True)
    (folder / "tls/no.pem").write_text("nothing", encoding="ascii")
    cases: tuple[tuple[dict[str, int | str], str], ...] = (
        ({"ca_file": "tls/none.pem"}, "ca_file can not be used: No such file"),
        ({"ca_file": "tls/no.pem"}, "ca_file can not be used: "),
        ({"client_cert": "tls/no.pem"}, "client_cert can not be used: "),
    )
    for options, text in cases:
        gateway = Gateway(folder, Upstream("https://127.0.0.1:1", options=options))
        gateway.write_config()
        gateway.weir("db", "upgrade")
        program = Path(sys.executable).with_name("weir")
        command = [str(program), "--config", str(gateway.config_path), "serve"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert "upstream 'local': " in ended.stderr
        assert text in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
