"""Requests of every protocol: what is read of them, what is refused, and what the upstream gets."""

import json
from typing import Any

import pytest

from proxy.meter import endpoints
from proxy.meter.steps import Outputs
from proxy.relay import request
from proxy.relay.asks import PROMPT_COUNTERS, forward, read
from proxy.relay.refusals import Refusal
from proxy.relay.request import Ask
from tests import captures
from tests.unit.meter_protocols.streams import LLAMA, VLLM

OTHERS = sorted(endpoints.ALL - endpoints.OPENAI_COMPLETIONS)
STREAMABLE = (endpoints.RESPONSES, endpoints.MESSAGES, endpoints.OLLAMA_CHAT, endpoints.OLLAMA_GENERATE)


def ask(endpoint: str, **body: Any) -> Ask:
    """A request that is taken."""
    found = read(endpoint, json.dumps({"model": "m", **body}).encode())
    assert isinstance(found, Ask), found
    return found


def refused(endpoint: str, **body: Any) -> Refusal:
    """A request that is not."""
    found = read(endpoint, json.dumps({"model": "m", **body}).encode())
    assert isinstance(found, Refusal), found
    return found


def forwarded(endpoint: str, **body: Any) -> dict[str, Any]:
    """The body that an upstream gets."""
    sent = forward(ask(endpoint, **body), "their-m", reports_each_output=False)
    assert (sent.hides_usage, sent.gathers) == (False, False)
    parsed: dict[str, Any] = json.loads(sent.raw)
    return parsed


@pytest.mark.parametrize("endpoint", OTHERS)
def test_the_model_is_read_and_becomes_the_upstreams(endpoint: str) -> None:
    """Usage is always seen in these protocols, and there is one output."""
    for body in ({}, {"stream": True}, {"stream": False, "n": 1}):
        found = ask(endpoint, input="x", **body)
        assert (found.endpoint, found.model, found.wants_usage, found.outputs) == (endpoint, "m", True, Outputs())
    assert forwarded(endpoint, input="x")["model"] == "their-m"


@pytest.mark.parametrize("endpoint", OTHERS)
@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"{}", b'{"model":""}', b'{"model":7}', b'{"model":"m","stream":"x"}']
)
def test_what_can_not_be_read_is_refused(endpoint: str, raw: bytes) -> None:
    """With 400, before any upstream sees it."""
    found = read(endpoint, raw)
    assert isinstance(found, Refusal)
    assert found.status == 400


@pytest.mark.parametrize("name", [f"{LLAMA}/messages", f"{LLAMA}/responses_stream", f"{VLLM}/messages_stream"])
def test_a_captured_request_passes_with_nothing_changed_but_what_is_documented(name: str) -> None:
    """Unknown fields included."""
    asked = captures.load(name).request()
    body = {**json.loads(asked.body), "new_thing": {"a": [1, None]}}
    expected = {**body, "model": "their-m", **({"store": False} if asked.path == endpoints.RESPONSES else {})}
    found = read(asked.path, json.dumps(body).encode())
    assert isinstance(found, Ask)
    assert json.loads(forward(found, "their-m", reports_each_output=False).raw) == expected
    if asked.path in (endpoints.RESPONSES, endpoints.MESSAGES):
        expected["stream"] = True  # of llama.cpp, whose whole answers can not be stopped
    assert json.loads(forward(found, "their-m", reports_each_output=True).raw) == expected


@pytest.mark.parametrize(
    ("endpoint", "body", "streams"),
    [
        (endpoints.RESPONSES, {}, False),
        (endpoints.RESPONSES, {"stream": True}, True),
        (endpoints.MESSAGES, {"stream": None}, False),
        (endpoints.MESSAGES, {"stream": True}, True),
        (endpoints.OLLAMA_CHAT, {}, True),
        (endpoints.OLLAMA_CHAT, {"stream": None}, True),
        (endpoints.OLLAMA_CHAT, {"stream": False}, False),
        (endpoints.OLLAMA_GENERATE, {"stream": True}, True),
        (endpoints.OLLAMA_EMBED, {}, False),
        (endpoints.EMBEDDINGS, {"stream": True}, False),
        (endpoints.COUNT_TOKENS, {"stream": True}, False),
    ],
)
def test_who_streams(endpoint: str, body: dict[str, Any], streams: bool) -> None:
    """Ollama does unless told otherwise."""
    assert ask(endpoint, **body).streams is streams


@pytest.mark.parametrize(
    ("endpoint", "body", "limit"),
    [
        (endpoints.RESPONSES, {}, None),
        (endpoints.RESPONSES, {"max_output_tokens": 80}, 80),
        (endpoints.RESPONSES, {"max_output_tokens": 8, "n_predict": 20}, 20),
        (endpoints.RESPONSES, {"max_output_tokens": 8, "n_predict": -1}, None),
        (endpoints.RESPONSES, {"max_output_tokens": 8, "max_completion_tokens": -1}, None),
        (endpoints.MESSAGES, {"max_tokens": 80}, 80),
        (endpoints.MESSAGES, {"max_tokens": 0}, None),
        (endpoints.MESSAGES, {"max_tokens": None}, None),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": 80}, "max_tokens": 5}, 80),
        (endpoints.OLLAMA_CHAT, {"num_predict": 80}, None),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": 80, "max_tokens": 500}}, 80),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": -1}}, None),
        (endpoints.OLLAMA_GENERATE, {"options": {"num_predict": 0}}, None),
        (endpoints.OLLAMA_GENERATE, {"options": []}, None),
        (endpoints.EMBEDDINGS, {"max_tokens": 5}, 0),
        (endpoints.RERANK, {}, 0),
        (endpoints.OLLAMA_EMBED, {"options": {"num_predict": 80}}, 0),
        (endpoints.COUNT_TOKENS, {"max_tokens": 80}, 0),
    ],
)
def test_the_limit_is_what_no_server_exceeds(endpoint: str, body: dict[str, Any], limit: int | None) -> None:
    """The largest of several; none where one of them means no limit to some server."""
    assert ask(endpoint, **body).output_tokens_max == limit


@pytest.mark.parametrize("value", [5.5, 1e3, "5", True, [5]])
def test_a_limit_that_is_no_integer_is_refused(value: object) -> None:
    """Servers read such loosely, each in its way."""
    assert refused(endpoints.RESPONSES, max_output_tokens=value).param == "max_output_tokens"
    assert refused(endpoints.MESSAGES, max_tokens=value).param == "max_tokens"
    assert refused(endpoints.OLLAMA_CHAT, options={"num_predict": value}).param == "num_predict"


@pytest.mark.parametrize("name", ["n", "n_cmpl", "best_of"])
@pytest.mark.parametrize("endpoint", [endpoints.RESPONSES, endpoints.MESSAGES])
def test_several_outputs_are_refused_where_the_protocol_has_one(endpoint: str, name: str) -> None:
    """llama.cpp would generate them all and report one."""
    assert (refused(endpoint, **{name: 2}).code, refused(endpoint, **{name: 2}).param) == ("invalid_request", name)
    assert ask(endpoint, **{name: 1}).outputs == Outputs()
    assert ask(endpoint, **{name: None}).outputs == Outputs()


def test_a_number_of_outputs_means_nothing_where_there_are_none() -> None:
    """The upstream may refuse it, the meter needs not know."""
    for endpoint in (endpoints.EMBEDDINGS, endpoints.OLLAMA_CHAT):
        assert ask(endpoint, n=2).outputs == Outputs()


def test_state_on_the_upstream_is_refused_or_switched_off() -> None:
    """No conversation is kept, and none can be another customer's."""
    for name, value in (("background", True), ("previous_response_id", "resp_1"), ("conversation", {"id": "c"})):
        assert refused(endpoints.RESPONSES, **{name: value}).param == name
    for body in ({}, {"store": True}, {"store": None}, {"background": False, "previous_response_id": None}):
        assert forwarded(endpoints.RESPONSES, **body) == {**body, "model": "their-m", "store": False}
    assert forwarded(endpoints.MESSAGES, store=True, background=True)["store"] is True


@pytest.mark.parametrize("endpoint", sorted(endpoints.OLLAMA))
def test_keep_alive_is_dropped(endpoint: str) -> None:
    """Which models are loaded is the operator's business."""
    assert forwarded(endpoint, keep_alive=0, input="x", options={"seed": 1}) == {
        "model": "their-m",
        "input": "x",
        "options": {"seed": 1},
    }


@pytest.mark.parametrize("endpoint", sorted(endpoints.ALL))
@pytest.mark.parametrize("name", ["Model", "MODEL", "Stream", "Max_Tokens", "ſtream", "max_toKens", "Keep_Alive"])
def test_a_name_that_differs_in_case_alone_is_refused(endpoint: str, name: str) -> None:
    """Go takes it for the field: one model would be priced, and another one answer."""
    found = refused(endpoint, **{name: "dearer"})
    assert (found.code, found.param) == ("invalid_request", name)


def test_names_in_capitals_that_weir_does_not_read_pass() -> None:
    """They are the upstream's to judge."""
    assert forwarded(endpoints.MESSAGES, TopK=3)["TopK"] == 3


@pytest.mark.parametrize(
    ("endpoint", "body", "has_stop_texts"),
    [
        (endpoints.RESPONSES, {"stop": ["tiny"]}, True),
        (endpoints.MESSAGES, {"stop_sequences": ["tiny"]}, True),
        (endpoints.MESSAGES, {"stop_sequences": []}, False),
        (endpoints.OLLAMA_CHAT, {"options": {"stop": ["tiny"]}}, True),
        (endpoints.OLLAMA_CHAT, {"options": {"stop": None}}, False),
        (endpoints.MESSAGES, {}, False),
    ],
)
def test_stop_texts_are_noticed(endpoint: str, body: dict[str, Any], has_stop_texts: bool) -> None:
    """A counted answer has no end token then."""
    assert ask(endpoint, **body).has_stop_texts is has_stop_texts


@pytest.mark.parametrize("endpoint", sorted(endpoints.OPENAI_COMPLETIONS))
def test_chats_and_completions_are_read_and_forwarded_as_before(endpoint: str) -> None:
    """By the module that they have."""
    raw = json.dumps({"model": "m", "stream": True, "n": 2, "max_tokens": 5, "prompt": ["a", "b"]}).encode()
    found = read(endpoint, raw)
    assert isinstance(found, Ask)
    assert found == request.read(endpoint, raw)
    for each in (True, False):
        sent = forward(found, "x", reports_each_output=each)
        assert sent == request.forward(found, "x", reports_each_output=each)


def test_deep_bodies_and_big_numbers_do_not_break_the_forwarding() -> None:
    """What was admitted can be serialised."""
    for depth in (200, 300):
        raw = b'{"model":"m","input":' + b"[" * depth + b"]" * depth + b"}"
        found = read(endpoints.RESPONSES, raw)
        if isinstance(found, Ask):
            assert forward(found, "m", reports_each_output=False).raw
        else:
            assert found.status == 400
    assert forwarded(endpoints.MESSAGES, seed=2**63)["seed"] == 2**63


def test_prompt_counters_belong_to_endpoints() -> None:
    """Where servers count a prompt."""
    assert set(PROMPT_COUNTERS) == {endpoints.CHAT, endpoints.RESPONSES, endpoints.MESSAGES}


@pytest.mark.parametrize("endpoint", [endpoints.RESPONSES, endpoints.MESSAGES])
def test_whole_answers_of_llama_cpp_are_gathered_from_a_stream(endpoint: str) -> None:
    """Those that were not streamed, whatever they say of streams; no other server's, and no path that has no stream."""
    found = ask(endpoint, input="x", stream=False, stream_options="x")
    sent = forward(found, "m", reports_each_output=True)
    assert sent.gathers
    body = json.loads(sent.raw)
    assert (body["stream"], "stream_options" in body) == (True, False)
    assert not forward(found, "m", reports_each_output=False).gathers
    assert not forward(ask(endpoint, input="x", stream=True), "m", reports_each_output=True).gathers


@pytest.mark.parametrize("endpoint", sorted(set(OTHERS) - {endpoints.RESPONSES, endpoints.MESSAGES}))
def test_other_answers_are_never_gathered(endpoint: str) -> None:
    sent = forward(ask(endpoint, input="x", stream=False), "m", reports_each_output=True)
    assert not sent.gathers
    assert json.loads(sent.raw)["stream"] is False
