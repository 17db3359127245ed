"""Several servers for one model: who is ejected, who comes back, what is tried again, and what never is."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, Upstream, eventually
from tests.acceptance.raw import CHAT, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, plain
from tests.emulators.upstream import Close, FakeUpstream, json_answer
from tests.support.ports import free_port

HANGS_UP, LOADING, REFUSED, LATE = "hangs-up", "loading", "refused", "late"
REQUESTS = 20
FAILURES_MAX = 6
"""A server that fails is tried after 1, 2, 4 … seconds: far fewer than half of the requests, on any machine."""


@pytest.fixture(scope="module")
def good() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def bad() -> Iterator[FakeUpstream]:
    """It tells its models, and serves nobody."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def late_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def shared(
    good: FakeUpstream, bad: FakeUpstream, late_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    models = {name: name for name in (HANGS_UP, LOADING, REFUSED)}
    upstreams = (
        Upstream(bad.url, "bad", {name: name for name in (HANGS_UP, LOADING)}, {"weight": 10}),
        Upstream(f"http://127.0.0.1:{late_port}", "late", {REFUSED: REFUSED, LATE: LATE}, {"weight": 10}),
        Upstream(good.url, "good", models),
    )
    with Gateway(tmp_path_factory.mktemp("gateway"), *upstreams) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()


def statuses(gateway: Gateway, model: str) -> list[int]:
    """What many requests are answered, one after the other."""
    return [ask(gateway, request(gateway.key, body(model=model))).status for _ in range(REQUESTS)]


def test_a_server_that_hangs_up_on_requests_does_not_draw_them_all(gateway: Gateway, bad: FakeUpstream) -> None:
    """It has nothing in flight, so the least busy is always the broken one."""
    bad.always(CHAT, Close())
    before = len(asked(bad))
    found = statuses(gateway, HANGS_UP)
    assert 1 <= found.count(502) <= FAILURES_MAX
    assert found.count(200) == REQUESTS - found.count(502)
    assert len(asked(bad)) - before == found.count(502), "nothing is sent a second time"


def test_a_server_that_is_not_available_is_left_alone(gateway: Gateway, bad: FakeUpstream) -> None:
    """llama.cpp answers 503 while it loads; the client gets that as it is, once or twice."""
    refusal = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    bad.always(CHAT, plain())
    eventually(lambda: bad_serves(gateway, bad), "the rest of the test before is over")
    bad.always(CHAT, json_answer(refusal, status=503))
    found = statuses(gateway, LOADING)
    assert 1 <= found.count(503) <= FAILURES_MAX
    assert found.count(200) == REQUESTS - found.count(503)
    bad.always(CHAT, plain())
    eventually(lambda: bad_serves(gateway, bad), "it is tried again, and serves")


def bad_serves(gateway: Gateway, bad: FakeUpstream) -> bool:
    """Whether a request goes to it and succeeds."""
    before = len(asked(bad))
    return ask(gateway, request(gateway.key, body(model=LOADING))).status == 200 and len(asked(bad)) > before


def test_nobody_notices_a_server_that_can_not_be_reached_and_it_is_used_soon_after_it_is_back(
    gateway: Gateway, late_port: int, good: FakeUpstream
) -> None:
    """Its rest has doubled several times by then; discovery asks each second."""
    for _ in range(2):
        assert statuses(gateway, REFUSED) == [200] * REQUESTS
        assert [ask(gateway, request(gateway.key, body(model=LATE))).status for _ in range(8)] == [503] * 8
        with ExitStack() as back:
            late = back.enter_context(fake_upstream(port=late_port))
            eventually(
                lambda late=late: statuses(gateway, REFUSED) and asked(late),  # type: ignore[misc]
                "it is used again",
                limit_s=20,
            )
            before = len(asked(good))
            assert ask(gateway, request(gateway.key, body(model=REFUSED))).status == 200
            assert len(asked(good)) == before, "ten times the weight"


def test_a_model_of_its_own_on_a_second_server_goes_there_and_only_there(tmp_path: Path) -> None:
    """The second alias beside the first, under the name that the server knows it by."""
    with fake_upstream() as small, fake_upstream() as large:
        upstreams = (
            Upstream(small.url, "small", {"qwen3.5-9b": "Qwen/Qwen3.5-9B"}),
            Upstream(large.url, "large", {"gpt-oss-120b": "openai/gpt-oss-120b"}),
        )
        with Gateway(tmp_path / "g", *upstreams) as gateway:
            for model, fake, own, name in (
                ("qwen3.5-9b", small, "Qwen/Qwen3.5-9B", "small"),
                ("gpt-oss-120b", large, "openai/gpt-oss-120b", "large"),
            ):
                answer = ask(gateway, request(gateway.key, body(model=model)))
                row = gateway.event(answer.id)
                assert (row["model"], row["upstream"], row["upstream_model"]) == (model, name, own)
                assert [record.json()["model"] for record in asked(fake)] == [own]
