"""Which upstream gets a request: the least busy for its weight, of those that answer."""

import asyncio
from collections.abc import Iterator

import pytest

from billing.config import Upstream
from proxy.relay.catalog import REST_S_MAX, Catalog, Server
from proxy.relay.connection import Pool
from proxy.relay.headers import Headers


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Nothing runs on it: pools are made, not used."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Made:
    """Makes servers; the model is `m` unless said otherwise."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, name: str, *, weight: int = 1, models: tuple[str, ...] = ("m",), kind: str = "auto") -> Server:
        config = Upstream.model_validate({"name": name, "url": "http://127.0.0.1:1", "weight": weight, "kind": kind})
        return Server(config, Pool(config, self._loop), kind, {model: model for model in models})


@pytest.fixture
def server(loop: asyncio.AbstractEventLoop) -> Made:
    """A maker of servers."""
    return Made(loop)


def names(catalog: Catalog, model: str = "m", now: float = 0.0) -> list[str]:
    """All upstreams in the order in which one request would try them."""
    tried: list[Server] = []
    while (chosen := catalog.choose(model, now, tried)) is not None:
        tried.append(chosen)
    return [one.config.name for one in tried]


def test_models_are_those_of_all_upstreams(server: Made) -> None:
    """Learned later, too, once the index is rebuilt."""
    a, b = server("a", models=("m", "x")), server("b", models=("m",))
    catalog = Catalog([a, b])
    assert catalog.models == ["m", "x"]
    assert (catalog.serves("x"), catalog.serves("y")) == (True, False)
    b.models = {"y": "y"}
    catalog.rebuild()
    assert (catalog.models, names(catalog, "m"), names(catalog, "y")) == (["m", "x", "y"], ["a"], ["b"])
    assert names(catalog, "unknown") == []


def test_the_least_busy_for_its_weight_is_chosen(server: Made) -> None:
    """Three times the weight, three times the work; nobody is tried twice for one request."""
    a, b = server("a"), server("b", weight=3)
    catalog = Catalog([a, b])
    assert names(catalog) == ["b", "a"]
    for _ in range(40):
        chosen = catalog.choose("m", 0.0, [])
        assert chosen is not None
        chosen.in_flight += 1
    assert (a.in_flight, b.in_flight) == (10, 30)


def test_who_does_not_answer_rests_twice_as_long_each_time(server: Made) -> None:
    """One second, two, four, up to the limit; and is forgiven at its first answer."""
    a = server("a")
    rests = []
    for _ in range(8):
        a.failed(100.0)
        rests.append(a.resting_until - 100.0)
    assert rests == [1, 2, 4, 8, 16, REST_S_MAX, REST_S_MAX, REST_S_MAX]
    a.answered(200, 100.0)
    assert (a.failures, a.resting_until) == (0, 0.0)


def test_who_says_that_it_is_not_available_rests_and_who_blames_the_request_does_not(server: Made) -> None:
    """A 500 is what llama.cpp says of a bad request: one customer must not take a server from the others."""
    a = server("a")
    for status in (200, 400, 404, 429, 500):
        a.answered(status, 100.0)
        assert a.resting_until == 0.0
    for status, rest in ((502, 1), (503, 2), (504, 4)):
        a.answered(status, 100.0)
        assert a.resting_until == 100.0 + rest
    a.answered(404, 100.0)
    assert a.resting_until == 0.0


def test_who_is_found_again_is_forgiven_only_for_not_having_been_there(server: Made) -> None:
    """One that tells its models and hangs up on every request would be forgiven each second."""
    a = server("a")
    a.failed(100.0, is_unreachable=True)
    a.found()
    assert (a.failures, a.resting_until, a.is_unreachable) == (0, 0.0, False)
    a.failed(100.0)
    a.found()
    assert a.resting_until == 101.0


def test_who_rests_is_passed_over_and_taken_if_there_is_nobody_else(server: Made) -> None:
    """Better a try than a refusal; the one that rests least first."""
    a, b, c = server("a"), server("b"), server("c")
    catalog = Catalog([a, b, c])
    a.failed(0.0)
    assert names(catalog, now=0.5)[2] == "a"
    b.failed(0.0)
    b.failed(0.0)
    assert names(catalog, now=0.5) == ["c", "a", "b"]
    c.failed(0.0)
    c.failed(0.0)
    c.failed(0.0)
    assert names(catalog, now=0.5) == ["a", "b", "c"]
    assert names(catalog, now=1.0)[0] == "a"
    for _ in range(3):
        a.failed(0.0)
    assert names(catalog, now=0.5) == ["b", "c", "a"]
    assert names(Catalog([c]), now=0.0) == ["c"]


def test_a_configured_kind_stays_and_an_unknown_one_is_learned(server: Made) -> None:
    """The meter depends on it: llama.cpp reports each output, and its connections end with their stream."""
    unknown, told = server("a"), server("b", kind="vllm")
    assert not unknown.reports_each_output
    unknown.learn_kind("llamacpp")
    told.learn_kind("llamacpp")
    assert (unknown.reports_each_output, unknown.pool.keeps_after_stream) == (True, False)
    assert (told.reports_each_output, told.pool.keeps_after_stream) == (False, True)


@pytest.mark.parametrize(
    ("headers", "is_llama"),
    [
        ([(b"server", b"llama.cpp")], True),
        ([(b"date", b"x"), (b"server", b"llama.cpp/b1")], True),
        ([(b"server", b"uvicorn")], False),
        ([(b"via", b"llama.cpp")], False),
        ([], False),
    ],
)
def test_llama_cpp_is_recognised_by_any_of_its_answers(server: Made, headers: Headers, is_llama: bool) -> None:
    """A server may have been exchanged since it was asked; who is configured to be another stays so."""
    unknown, told = server("a"), server("b", kind="vllm")
    unknown.recognise(headers)
    told.recognise(headers)
    assert (unknown.reports_each_output, told.reports_each_output) == (is_llama, False)
