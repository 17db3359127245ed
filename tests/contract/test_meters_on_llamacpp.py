"""The meters and request readers of each protocol against a real llama.cpp: its own counters are the judge."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from billing.tokens.vocabulary import Vocabulary, load
from billing.usage import Usage
from proxy.meter import endpoints
from proxy.meter.choose import Meter, Plan, is_stream, stream_meter, whole_reader
from proxy.meter.steps import Outputs, Settle
from proxy.relay import asks
from proxy.relay.refusals import Refusal
from proxy.relay.request import Ask
from tests.inference.llama_server import HOST, LlamaServer

BODIES: dict[str, dict[str, Any]] = {
    endpoints.CHAT: {
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream_options": {"include_usage": True},
    },
    endpoints.RESPONSES: {"input": "Say hello."},
    endpoints.MESSAGES: {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 80},
}
STREAMED = [(endpoint, streams) for endpoint in BODIES for streams in (True, False)]


@pytest.fixture(scope="module")
def qwen() -> Vocabulary:
    """The scripted model's vocabulary."""
    return load("qwen3.5")


def shown(passed: bytes) -> tuple[list[str], list[str]]:
    """The deltas of reasoning and of content in what was passed on, read without the meters."""
    reasoning: list[str] = []
    content: list[str] = []
    for event in (json.loads(line[6:]) for line in passed.decode().split("\n") if line.startswith("data: ")):
        delta = event.get("delta")
        if isinstance(delta, str):
            (reasoning if "reasoning" in event["type"] else content).append(delta)
        elif isinstance(delta, dict):
            reasoning += [delta["thinking"]] if "thinking" in delta else []
            content += [delta["text"]] if "text" in delta else []
    return reasoning, content


def post(llama: LlamaServer, path: str, body: dict[str, Any]) -> Any:
    """What the server answers to a plain request."""
    connection = http.client.HTTPConnection(HOST, llama.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def tokenized(llama: LlamaServer, text: str) -> int:
    """How many tokens a text is to the server."""
    return len(post(llama, "/tokenize", {"content": text})["tokens"])


class Answer:
    """One answer of the server, to a body as Weir would forward it."""

    def __init__(self, llama: LlamaServer, endpoint: str, **body: Any) -> None:
        ask = asks.read(endpoint, json.dumps({"model": "public", **body}).encode())
        assert isinstance(ask, Ask), ask
        sent = asks.forward(ask, llama.model.name, reports_each_output=True)
        self.endpoint = endpoint
        self._connection = http.client.HTTPConnection(HOST, llama.port, timeout=60)
        self._connection.request("POST", endpoint, sent.raw, {"content-type": "application/json"})
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.content_type = (self._response.getheader("content-type") or "").encode()

    def reads(self) -> Iterator[bytes]:
        """What comes, as it comes; the connection is closed when no more is taken."""
        try:
            while read := self._response.read1(65_536):
                yield read
        finally:
            self._response.close()
            self._connection.close()

    def meter(self) -> Meter:
        """The meter of this stream."""
        assert is_stream(self.endpoint, self.content_type)
        return stream_meter(Plan(self.endpoint, outputs=Outputs(), reports_each_output=True), self.content_type)

    def settled(self) -> Settle:
        """The end of the answer, streamed or not."""
        if not is_stream(self.endpoint, self.content_type):
            return whole_reader(self.endpoint).settle(b"".join(self.reads()))
        meter = self.meter()
        for read in self.reads():
            meter.receive(read)
        assert meter.is_complete
        return meter.finish()


@pytest.mark.parametrize(("endpoint", "streams"), STREAMED)
def test_every_protocol_books_what_the_server_counted(llama: LlamaServer, endpoint: str, streams: bool) -> None:
    """13 and 44, streamed or not, and the counters of the server agree."""
    before = llama.metrics()
    settled = Answer(llama, endpoint, stream=streams, **BODIES[endpoint]).settled()
    assert settled.usage is not None
    assert settled.usage[:2] == (13, 44)
    after = llama.metrics()
    assert after["tokens_predicted_total"] - before["tokens_predicted_total"] == 44
    read = after["prompt_tokens_total"] - before["prompt_tokens_total"]
    assert settled.usage.input_tokens - settled.usage.cached_input_tokens == read


@pytest.mark.parametrize("endpoint", [endpoints.RESPONSES, endpoints.MESSAGES])
def test_several_outputs_are_not_asked_for(llama: LlamaServer, endpoint: str) -> None:
    """On responses the server would generate both, and answer an array that no usage stands over."""
    body = {"model": llama.model.name, **BODIES[endpoint], "max_tokens": 8, "n": 2}
    assert isinstance(asks.read(endpoint, json.dumps(body).encode()), Refusal)
    if endpoint == endpoints.RESPONSES:
        before = llama.metrics()["tokens_predicted_total"]
        answer = post(llama, endpoint, body)
        assert [one["usage"]["output_tokens"] for one in answer] == [8, 8]
        assert llama.metrics()["tokens_predicted_total"] - before == 16


@pytest.mark.parametrize(
    "limits", [{"max_output_tokens": 8, "n_predict": 20}, {"max_output_tokens": 8, "max_completion_tokens": 20}]
)
def test_no_field_makes_the_server_exceed_the_limit_that_was_read(llama: LlamaServer, limits: dict[str, int]) -> None:
    """The server obeys another field than the protocol's: the largest is believed."""
    ask = asks.read(endpoints.RESPONSES, json.dumps({"model": "m", "input": "Say hello.", **limits}).encode())
    assert isinstance(ask, Ask)
    settled = Answer(llama, endpoints.RESPONSES, input="Say hello.", **limits).settled()
    assert settled.usage is not None
    assert ask.output_tokens_max == settled.usage.output_tokens == 20


@pytest.mark.parametrize("endpoint", [endpoints.RESPONSES, endpoints.MESSAGES])
@pytest.mark.parametrize("deltas", [1, 9, 20, 40])
def test_a_cut_stream_is_counted_to_the_tokens_that_were_delivered(
    llama: LlamaServer, qwen: Vocabulary, endpoint: str, deltas: int
) -> None:
    """The text that was passed on, tokenised by the server itself, and the end of the reasoning."""
    answer = Answer(llama, endpoint, stream=True, **BODIES[endpoint])
    meter, passed = answer.meter(), b""
    for read in answer.reads():
        passed += meter.receive(read)
        reasoning, content = shown(passed)
        if len(reasoning) + len(content) >= deltas:
            break
    assert meter.known_usage() is None
    end_of_reasoning = 2 if content else 0
    expected = tokenized(llama, "".join(reasoning)) + tokenized(llama, "".join(content)) + end_of_reasoning
    assert meter.delivered().output_tokens(qwen) == expected >= deltas


def test_timings_on_each_event_make_a_cut_stream_exact(llama: LlamaServer) -> None:
    """If the client asks for them: what the last delta says is what had been generated."""
    answer = Answer(llama, endpoints.RESPONSES, stream=True, timings_per_token=True, **BODIES[endpoints.RESPONSES])
    meter, passed = answer.meter(), b""
    for read in answer.reads():
        passed += meter.receive(read)
        if passed.count(b"event: response.reasoning_text.delta") >= 5:
            break
    told = meter.known_usage()
    assert told is not None
    assert told[:2] == (13, passed.count(b"event: response.reasoning_text.delta"))


def test_a_prompt_is_counted_for_free_where_the_table_says(llama: LlamaServer) -> None:
    """13, by each protocol's own path."""
    for endpoint, path in asks.PROMPT_COUNTERS.items():
        assert post(llama, path, {"model": llama.model.name, **BODIES[endpoint]})["input_tokens"] == 13


def test_the_prompt_of_messages_is_known_before_the_first_delta(llama: LlamaServer) -> None:
    """So that a cut stream's prompt need not be counted."""
    answer = Answer(llama, endpoints.MESSAGES, stream=True, **BODIES[endpoints.MESSAGES])
    meter = answer.meter()
    for read in answer.reads():
        meter.receive(read)
        break
    prompt = meter.known_prompt()
    assert isinstance(prompt, Usage)
    assert prompt[:2] == (13, 0)


def test_what_this_server_lacks_is_its_own_answer(llama: LlamaServer) -> None:
    """Its error is nothing that a usage is read from."""
    for endpoint in (endpoints.EMBEDDINGS, endpoints.RERANK):
        answer = Answer(llama, endpoint, input="x", query="x", documents=["x"])
        assert answer.status >= 400
        settled = answer.settled()
        assert (settled.usage, settled.is_error) == (None, True)
