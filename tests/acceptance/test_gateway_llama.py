"""A real llama.cpp server behind the gateway: the same bytes as without it; its own counters are the ledger's anchor.

The model is a scripted test model (tests/inference): its text is canned, the server, its tokens and its counters are
real.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Final

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionToolParam

from tests.acceptance.harness import MODEL, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import CHAT, COMPLETIONS, Answer, Raw, ask, body, request
from tests.inference.llama_server import Counted, LlamaServer
from tests.inference.script import TOOL_CALL_TOKEN, ScriptedModel

HELLO: Final = "Say hello."
DIRECT: Final[dict[str, Any]] = {"chat_template_kwargs": {"enable_thinking": False}}
FORECAST: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {
        "name": ScriptedModel.tool,
        "description": "Forecast",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}
TOOLS: Final[dict[str, Any]] = {"tools": [FORECAST], "logit_bias": {str(TOOL_CALL_TOKEN): 20}}
USAGE: Final[dict[str, Any]] = {"stream_options": {"include_usage": True}}
BATCH_TOKENS_MAX: Final = 4
"""What may be generated between the last delivered token and the moment at which the server notices the close."""


@pytest.fixture(scope="module")
def shared(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the module; the model's public name is the server's."""
    with Gateway(tmp_path_factory.mktemp("gateway"), Upstream(llama.url, "llama")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway; a traceback in its log, or sums that do not agree, fail the test."""
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    """The official client, without retries: a retried request would be counted twice."""
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key.secret, max_retries=0) as openai:
        yield openai


# the same bytes


def direct(llama: LlamaServer) -> Any:
    """The server itself, for `Raw`, which needs only a port."""
    return llama


MASKS: Final = (
    (rb'"id":"chatcmpl-[A-Za-z0-9]+"', b'"id":"chatcmpl-0"'),
    (rb'"id":"[A-Za-z0-9]{32}"', b'"id":"call"'),
    (rb'"created":\d+', b'"created":0'),
    (rb'"timings":\{[^}]*\}', b'"timings":{}'),
    (rb'"cached_tokens":\d+', b'"cached_tokens":0'),
)
"""What differs between two calls to one server: ids, times, and how much of the prompt it still had in its cache."""

COST: Final = rb',"cost":0\.\d+'


def masked(data: bytes, *, without_cost: bool = False) -> bytes:
    """The bytes that have to be the same."""
    for pattern, text in MASKS:
        data = re.sub(pattern, text, data)
    return re.sub(COST, b"", data) if without_cost else data


CONTINUED: Final = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]

SAME: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "plain": (CHAT, body(HELLO)),
    "without thinking": (CHAT, body(HELLO, **DIRECT)),
    "logprobs": (CHAT, body(HELLO, logprobs=True, top_logprobs=2, **DIRECT)),
    "a limit": (CHAT, body(HELLO, max_tokens=5)),
    "a limit of nothing": (CHAT, body(HELLO, max_tokens=0)),
    "a stop": (CHAT, body(HELLO, stop=["tiny"], **DIRECT)),
    "a tool": (CHAT, body(HELLO, **TOOLS, **DIRECT)),
    "streamed": (CHAT, body(HELLO, stream=True)),
    "streamed with usage": (CHAT, body(HELLO, stream=True, **USAGE)),
    "streamed without usage by name": (CHAT, body(HELLO, stream=True, stream_options={"include_usage": False})),
    "streamed logprobs": (CHAT, body(HELLO, stream=True, logprobs=True, **DIRECT)),
    "streamed tool with usage": (CHAT, body(HELLO, stream=True, **TOOLS, **DIRECT, **USAGE)),
    "streamed timings": (CHAT, body(HELLO, stream=True, timings_per_token=True, **DIRECT)),
    "two streamed": (CHAT, body(HELLO, stream=True, n=2, **DIRECT)),
    "two streamed with usage": (CHAT, body(HELLO, stream=True, n=2, **DIRECT, **USAGE)),
    "a cut tool call": (CHAT, body(HELLO, **TOOLS, max_tokens=30)),
    "a forced tool": (CHAT, body(HELLO, **TOOLS, tool_choice="required")),
    "a thought cut where it ends": (CHAT, body(HELLO, max_tokens=17)),
    "thoughts in the text": (CHAT, body(HELLO, reasoning_format="none")),
    "a stop in a thought": (CHAT, body(HELLO, stop=["wants"])),
    "verbose": (CHAT, body(HELLO, n=None, verbose=False, return_tokens=True, timings_per_token=True)),
    "a continued message": (CHAT, {"model": MODEL, **DIRECT, "messages": CONTINUED}),
    "a completion with probabilities": (
        COMPLETIONS,
        {"model": MODEL, "prompt": "Hello", "max_tokens": 7, "logprobs": 2},
    ),
    "an echo": (COMPLETIONS, {"model": MODEL, "prompt": "Hello", "max_tokens": 7, "echo": True}),
    "a bad grammar": (CHAT, body(HELLO, grammar="rooot =")),
    "a completion": (COMPLETIONS, {"model": MODEL, "prompt": "Hello", "max_tokens": 7}),
    "a streamed completion": (COMPLETIONS, {"model": MODEL, "prompt": "Hello", "max_tokens": 7, "stream": True}),
    "a prompt of token ids": (COMPLETIONS, {"model": MODEL, "prompt": [9707, 0], "max_tokens": 3}),
    "emoji": (CHAT, body("👩‍👩‍👧 schöne grüße ✓ 你好", stream=True, **USAGE)),
    "no messages": (CHAT, {"model": MODEL}),
    "a bad role": (CHAT, {"model": MODEL, "messages": [{"role": "nobody", "content": 1}]}),
    "a bad type, streamed": (CHAT, {"model": MODEL, "messages": "hi", "stream": True}),
    "too long": (CHAT, body("word " * 9_000)),
    "too long, streamed": (CHAT, body("word " * 9_000, stream=True)),
}


def in_order(answer: Answer, *, is_shuffled: bool) -> list[bytes]:
    """The events of a stream; those of two outputs come in whatever order the server's slots are served.

    llama.cpp puts its `timings` on the last delta, or on the usage chunk where it is asked for one: Weir always asks.
    """
    body = masked(answer.body, without_cost=True)
    if b'"usage":' not in body:
        body = body.replace(b',"timings":{}', b"")
    return sorted(body.split(b"\n\n")) if is_shuffled else [body]


@pytest.mark.parametrize(("path", "content"), SAME.values(), ids=SAME.keys())
def test_the_client_sees_the_servers_own_bytes(
    gateway: Gateway, llama: LlamaServer, path: str, content: dict[str, Any]
) -> None:
    raw = request(gateway.key, content, path=path)
    own = ask(direct(llama), raw)
    answer = ask(gateway, raw)
    assert answer.status == own.status
    is_shuffled = content.get("n") == 2
    assert in_order(answer, is_shuffled=is_shuffled) == in_order(own, is_shuffled=is_shuffled)
    if not content.get("stream_options", {}).get("include_usage") and content.get("stream"):
        assert b'"cost"' not in answer.body
    names = {"connection", "keep-alive", "content-length", "x-request-id", "x-weir-amount"}
    headers, own_headers = ({pair for pair in one.headers if pair[0] not in names} for one in (answer, own))
    assert headers == own_headers


def test_two_outputs_in_one_answer_are_the_servers_but_for_its_count(gateway: Gateway, llama: LlamaServer) -> None:
    """llama.cpp reports the usage of the first output alone."""
    raw = request(gateway.key, body(HELLO, n=2, **DIRECT))
    own = ask(direct(llama), raw)
    counted = Counted(llama)
    answer = ask(gateway, raw)
    usage = re.compile(rb'"usage":\{.*?\}\}')
    assert usage.sub(b"", masked(answer.body, without_cost=True)) == usage.sub(b"", masked(own.body))
    assert own.json["usage"]["completion_tokens"] == ScriptedModel.output_tokens_direct
    row = gateway.event(answer.id)
    assert answer.json["usage"]["completion_tokens"] == row["output_tokens"] == counted.output == 56
    assert answer.json["usage"]["prompt_tokens"] == row["input_tokens"] == 15


def test_nothing_is_held_back_but_the_end(gateway: Gateway) -> None:
    """Each token leaves when it comes: the client has many of them while the server still generates."""
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(HELLO, stream=True, max_tokens=2_000, ignore_eos=True)))
        client.head()
        first = [client.chunk() for _ in range(20)]
        assert b"[DONE]" not in b"".join(first)
        assert max(len(chunk) for chunk in first) < 2_000, "no batches of events"


# the official client


def test_the_sdk_gets_a_plain_answer_and_its_price(gateway: Gateway, client: OpenAI, llama: LlamaServer) -> None:
    counted = Counted(llama)
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": HELLO}], extra_body=DIRECT
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == ScriptedModel.answer
    assert answer.usage is not None
    row = gateway.event(raw.headers["x-request-id"])
    assert (row["input_tokens"], row["output_tokens"]) == (15, 28) == (counted.prompt, counted.output)
    assert row["cached_input_tokens"] == counted.cached_prompt
    assert row["amount_pico"] == price(15, 28)
    assert answer.usage.to_dict()["cost"] == pytest.approx(row["amount_pico"] / 10**12, abs=0)
    assert raw.headers["x-weir-amount"] == f"0.{row['amount_pico']:012d} usd"
    assert (row["outcome"], row["count_source"], row["upstream"]) == ("completed", "upstream", "llama")


def test_the_sdk_gets_a_stream_and_its_price(gateway: Gateway, client: OpenAI, llama: LlamaServer) -> None:
    counted = Counted(llama)
    with client.chat.completions.with_streaming_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": HELLO}],
        stream=True,
        stream_options={"include_usage": True},
    ) as raw:
        *chunks, last = list(raw.parse())
        request_id = raw.headers["x-request-id"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ScriptedModel.answer
    assert last.usage is not None
    row = gateway.event(request_id)
    assert (row["input_tokens"], row["output_tokens"]) == (13, 44) == (counted.prompt, counted.output)
    assert last.usage.to_dict()["cost"] == pytest.approx(row["amount_pico"] / 10**12, abs=0)


def test_the_sdk_gets_tool_calls(gateway: Gateway, client: OpenAI, llama: LlamaServer) -> None:
    counted = Counted(llama)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": HELLO}],
        tools=[FORECAST],
        logit_bias={str(TOOL_CALL_TOKEN): 20},
        extra_body=DIRECT,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    call = calls[0]
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == (ScriptedModel.tool, ScriptedModel.tool_arguments)
    assert gateway.events()[-1]["output_tokens"] == ScriptedModel.tool_output_tokens_direct == counted.output


def test_each_request_has_its_share_of_the_servers_time(gateway: Gateway) -> None:
    """Divided as its `timings` say, streamed or not; of several at once, the shares are the time that passed."""
    before = len(gateway.events())
    for content in (body(HELLO, stream=True, **USAGE), body(HELLO)):
        answer = ask(gateway, request(gateway.key, content))
        told = re.findall(rb'"prompt_ms":([0-9.]+).*?"predicted_ms":([0-9.]+)', answer.body)[-1]
        row = gateway.event(answer.id)
        prompt_us, generation_us = (int(float(each) * 1_000) for each in told)
        share = row["prompt_us"] + row["generation_us"]
        assert 0 < share <= row["finished_at"] - row["started_at"]
        assert row["prompt_us"] == share * prompt_us // (prompt_us + generation_us)
        assert row["generation_us"] > 0
    ask(gateway, request(gateway.key, body(HELLO, stream=True, max_tokens=1)))
    asyncio.run(run_many(gateway))
    rows = gateway.events()[before:]
    many = rows[3:]
    passed = max(row["finished_at"] for row in many) - min(row["started_at"] for row in many)
    assert len(many) == 20
    assert sum(row["prompt_us"] + row["generation_us"] for row in many) <= passed + 1_000, "each instant counts once"
    hours = gateway.rows("SELECT sum(prompt_us) AS p, sum(generation_us) AS g, sum(requests) AS n FROM upstream_hourly")
    every = gateway.rows("SELECT sum(prompt_us) AS p, sum(generation_us) AS g, count(*) AS n FROM usage_events")
    assert hours == every
    gateway.weir("cost", "hardware", "add", "box", "--rent", "0.36", "--upstream", "llama")
    (work, idle, total) = json.loads(gateway.weir("cost", "actual", "--by", "model", "--json"))
    assert work["prompt_us"] == hours[0]["p"]
    assert Decimal(work["cost"]) + Decimal(idle["cost"]) == Decimal(total["cost"])
    assert Decimal(work["prompt_cost"]) + Decimal(work["generation_cost"]) == Decimal(work["cost"]) > 0


async def run_many(gateway: Gateway) -> list[str]:
    """The asynchronous client, twenty streams at once, two outputs each."""
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key.secret, max_retries=0) as client:

        async def one() -> str:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": HELLO}], n=2, stream=True, extra_body=DIRECT
            )
            texts = {0: "", 1: ""}
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            return texts[0] + texts[1]

        return await asyncio.gather(*(one() for _ in range(20)))


def test_the_asynchronous_sdk_runs_many_streams_of_two_outputs_at_once(gateway: Gateway, llama: LlamaServer) -> None:
    counted, before = Counted(llama), len(gateway.events())
    assert asyncio.run(run_many(gateway)) == [ScriptedModel.answer * 2] * 20
    rows = gateway.events()[before:]
    assert [row["output_tokens"] for row in rows] == [56] * 20
    assert sum(row["output_tokens"] for row in rows) == counted.output


# the sums


LOAD: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (CHAT, body("hi")),
    (CHAT, body(HELLO, stream=True)),
    (CHAT, body(HELLO, stream=True, **USAGE, **DIRECT)),
    (CHAT, body(HELLO, n=2)),
    (CHAT, body("hi", n=3, stream=True, **DIRECT)),
    (CHAT, body(HELLO, **TOOLS, stream=True)),
    (CHAT, body(HELLO, max_tokens=3)),
    (CHAT, body(HELLO, max_tokens=0)),
    (CHAT, body(ScriptedModel.user_text(600), cache_prompt=False)),
    (COMPLETIONS, {"model": MODEL, "prompt": "Hello", "max_tokens": 9}),
    (COMPLETIONS, {"model": MODEL, "prompt": ["Hello", "This is", "Hello!"], "max_tokens": 4}),
    (COMPLETIONS, {"model": MODEL, "prompt": ["Hello", "This"], "max_tokens": 6, "stream": True, "n": 1}),
    (CHAT, {"model": MODEL}),
)


def test_the_ledger_holds_what_the_server_computed_over_a_mixed_load(gateway: Gateway, llama: LlamaServer) -> None:
    """Σ tokens of the events = Σ tokens by llama.cpp's own counters; Σ amounts by hand."""
    counted, before = Counted(llama), len(gateway.events())
    keys = [gateway.key, gateway.new_key(), gateway.new_customer("loaded")]
    jobs = [(key, path, content) for key in keys for path, content in LOAD]

    def run(job: tuple[Key, str, dict[str, Any]]) -> Answer:
        key, path, content = job
        return ask(gateway, request(key, content, path=path))

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(run, jobs))
    refused = [answer for answer in answers if answer.status != 200]
    assert len(refused) == 3, "llama.cpp's own refusals"
    rows = gateway.events()[before:]
    assert {row["id"] for row in rows} == {answer.id for answer in answers if answer.status == 200}
    assert {(row["outcome"], row["count_source"], row["anomaly"]) for row in rows} == {("completed", "upstream", None)}
    assert sum(row["output_tokens"] for row in rows) == counted.output
    assert sum(row["input_tokens"] for row in rows) == counted.prompt
    assert sum(row["cached_input_tokens"] for row in rows) == counted.cached_prompt
    for row in rows:
        assert row["amount_pico"] == price(row["input_tokens"], row["output_tokens"])


# clients that leave


def generated(counted: Counted, at_least: int) -> int:
    """What the server says that it generated, once it has said so."""
    return eventually(lambda: (found := counted.output) >= at_least and found, "the server stopped") or 0


@pytest.mark.parametrize("delivered", [1, 2, 25, 140])
def test_a_client_that_leaves_a_stream_pays_for_what_it_was_sent(
    gateway: Gateway, llama: LlamaServer, delivered: int
) -> None:
    """It half-closes and reads on, so that it has all that Weir sent: each of its tokens is billed, and no other.

    What the server generates until it hears of it depends on who gets the processor; that it stops is the next test.
    """
    counted = Counted(llama)
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(HELLO, stream=True, max_tokens=4_000, ignore_eos=True, **DIRECT)))
        answer = client.head()
        seen = b""
        while seen.count(b'"content":"') < delivered:
            seen += client.chunk()
        client.half_close()
        framed = client.rest()
    row = gateway.event(answer.id)
    assert (row["outcome"], row["count_source"]) == ("client_closed", "counted")
    assert row["input_tokens"] == 15
    tokens = row["output_tokens"]
    assert tokens == (seen + framed).count(b'"content":"') >= delivered
    texts = [json.loads(data[6:]) for data in seen.split(b"\n\n") if data]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in texts)
    assert llama.model.text_without_end(tokens).startswith(text)
    assert generated(counted, tokens) < 4_000
    assert row["amount_pico"] == price(15, tokens)


def test_the_server_stops_at_once_for_a_client_that_left(gateway: Gateway, llama: LlamaServer) -> None:
    counted = Counted(llama)
    for _ in range(3):
        with Raw(gateway) as client:
            client.send(request(gateway.key, body(HELLO, stream=True, max_tokens=6_000, ignore_eos=True)))
            client.head()
            client.chunk()
    rows = eventually(lambda: [row for row in gateway.events()[-3:] if row["outcome"] == "client_closed"], "recorded")
    # The next request finds free slots, and the server's counters do not grow by 6,000 tokens for each.
    answer = ask(gateway, request(gateway.key, body(HELLO)))
    assert answer.status == 200
    assert counted.output < 3_000
    assert rows


def test_a_client_that_leaves_before_its_plain_answer_pays_for_its_prompt(gateway: Gateway, llama: LlamaServer) -> None:
    before = len(gateway.events())
    client = Raw(gateway)
    client.send(request(gateway.key, body(HELLO, max_tokens=1_500, ignore_eos=True)))
    eventually(lambda: processing(llama), "the server has it: before that there is nothing to pay")
    client.close()
    row = eventually(lambda: gateway.events()[before:], "it is recorded")[0]
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("client_closed", 13, 0)


def processing(llama: LlamaServer) -> int:
    """How many requests the server works on now."""
    page = ask(direct(llama), request(None, b"", method="GET", path="/metrics")).body
    found = re.search(rb"^llamacpp:requests_processing ([0-9]+)", page, re.MULTILINE)
    assert found is not None
    return int(found[1])


ENDLESS: Final[dict[str, Any]] = {"max_tokens": 7_000, "ignore_eos": True}
SEVENS: Final = {"type": "array", "items": {"type": "integer"}, "minItems": 1_000}
LONG_ARGUMENTS: Final = {"type": "object", "properties": {"days": SEVENS}, "required": ["days"]}
LONG_ANSWERS: Final[dict[str, dict[str, Any]]] = {
    CHAT: body(HELLO, **ENDLESS),
    COMPLETIONS: {"model": MODEL, "prompt": "Hello", **ENDLESS},
    "/v1/responses": {"model": MODEL, "input": HELLO, "max_output_tokens": 7_000, "ignore_eos": True},
    "/v1/messages": {  # it has no `ignore_eos`: a long tool call keeps the server busy
        "model": MODEL,
        "max_tokens": 7_000,
        "messages": [{"role": "user", "content": HELLO}],
        "tools": [{"name": "f", "input_schema": LONG_ARGUMENTS}],
        "tool_choice": {"type": "any"},
    },
}


@pytest.mark.parametrize(("path", "content"), LONG_ANSWERS.items(), ids=LONG_ANSWERS.keys())
def test_a_plain_answer_that_is_left_stops_on_a_busy_server(
    gateway: Gateway, llama: LlamaServer, path: str, content: dict[str, Any]
) -> None:
    """The server itself would go on to the end: it looks for a client only when it has had nothing to say for long."""
    eventually(lambda: processing(llama) == 0, "what was left before has stopped")
    before = len(gateway.events())
    with Raw(direct(llama)) as other:
        other.send(request(None, body(HELLO, stream=True, **ENDLESS)))
        other.head()
        client = Raw(gateway)
        client.send(request(gateway.key, content, path=path))
        eventually(lambda: processing(llama) == 2, "both are under way")
        client.close()
        eventually(lambda: processing(llama) == 1, "the one whose client left has stopped")
        assert other.chunk()
        row = eventually(lambda: gateway.events()[before:], "it is recorded")[0]
        assert (row["outcome"], row["output_tokens"]) == ("client_closed", 0)
        assert row["input_tokens"] == 13 or path not in (CHAT, "/v1/responses")
        assert row["input_tokens"] > 0
        assert processing(llama) == 1, "the other, which began first and is as long, still runs"


def test_a_drained_plain_answer_is_billed_in_full(gateway: Gateway, llama: LlamaServer) -> None:
    before, counted = len(gateway.events()), Counted(llama)
    for policy in ("drain", "drain:300"):
        client = Raw(gateway)
        key = gateway.new_key("--on-disconnect", policy)
        client.send(request(key, body(HELLO, max_tokens=600, ignore_eos=True)))
        eventually(lambda: processing(llama) == 1, "it is under way")
        client.close()
        eventually(lambda: processing(llama) == 0, "it has ended")
    eventually(lambda: len(gateway.events()) == before + 2, "they are recorded")
    whole, part = gateway.events()[before:]
    assert (whole["outcome"], whole["count_source"], whole["output_tokens"]) == ("client_closed", "upstream", 600)
    assert (part["outcome"], part["count_source"]) == ("client_closed", "counted")
    assert 300 <= part["output_tokens"] < 600
    assert counted.output - 600 - part["output_tokens"] <= BATCH_TOKENS_MAX + part["output_tokens"] // 30


def metrics(gateway: Gateway) -> bytes:
    """The page that Prometheus reads."""
    return ask(gateway, request(None, b"", method="GET", path="/metrics")).body
