"""Usage that can not be true (I11): the prompt is clamped to our count, the output is marked, honest servers are not.

The upstream is a script, so that it can lie; what is honest and looks odd is also asked of a real llama.cpp.
"""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.acceptance.harness import MODEL, Gateway, Row, Upstream, price
from tests.acceptance.raw import CHAT, COMPLETIONS, ask, body, request
from tests.acceptance.serving import chat, fake_upstream, plain, streamed
from tests.emulators.upstream import FakeUpstream, chat_chunk, json_answer, stream, usage_chunk
from tests.inference.llama_server import Counted, LlamaServer
from tests.inference.script import TOOL_CALL_TOKEN, ScriptedModel

HI: Final = 11
"""Tokens of "hi" in Qwen3.5's template, measured on llama.cpp and vLLM."""
USAGE: Final[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), Upstream(fake.url)) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


def booked(row: Row) -> tuple[int, int, str | None]:
    """What a row bills, and what was wrong."""
    return row["input_tokens"], row["output_tokens"], row["anomaly"]


# servers that lie


@pytest.mark.parametrize("prompt", [109, 500, 100_000, 10**12, 2**63])
def test_a_prompt_that_can_not_be_is_billed_as_we_count_it(gateway: Gateway, fake: FakeUpstream, prompt: int) -> None:
    """From the first token above 4 × 11 + 64; the price in header and body is that of the count."""
    fake.script(plain(prompt=prompt, completion=3), path=CHAT)
    answer = ask(gateway, request(gateway.key))
    row = gateway.event(answer.id)
    assert booked(row) == (HI, 3, "input_implausible")
    assert row["amount_pico"] == price(HI, 3)
    assert answer.header("x-weir-amount") == f"0.{price(HI, 3):012d} usd"
    assert answer.json["usage"]["prompt_tokens"] == prompt, "the server's own words stay"
    assert answer.json["usage"]["cost"] == pytest.approx(price(HI, 3) / 10**12, abs=0)


def test_a_prompt_at_the_bound_is_believed(gateway: Gateway, fake: FakeUpstream) -> None:
    fake.script(plain(prompt=108, completion=3), path=CHAT)
    assert booked(gateway.event(ask(gateway, request(gateway.key)).id)) == (108, 3, None)


@pytest.mark.parametrize("words", [1, 3_000])
def test_a_stream_with_a_prompt_that_can_not_be_shows_what_is_billed(
    gateway: Gateway, fake: FakeUpstream, words: int
) -> None:
    """Its usage passes before a long prompt can be counted: then `cost` is null, and the receipt has the amount."""
    fake.script(*streamed("Hel", "lo", prompt=500_000, completion=3), path=CHAT)
    answer = ask(gateway, request(gateway.key, body("word " * words, **USAGE)))
    row = gateway.event(answer.id)
    assert booked(row) == (row["input_tokens"], 3, "input_implausible")
    assert words < row["input_tokens"] < words + 20
    shown = f"{row['amount_pico'] / 10**12:.12f}".rstrip("0") if words == 1 else "null"
    assert f'"cost":{shown}}}'.encode() in answer.body


def test_a_stream_whose_prompt_is_only_doubtful_shows_its_price(gateway: Gateway, fake: FakeUpstream) -> None:
    fake.script(*streamed("Hel", "lo", prompt=100, completion=3), path=CHAT)
    answer = ask(gateway, request(gateway.key, body(**USAGE)))
    assert booked(gateway.event(answer.id)) == (100, 3, None)
    assert f'"cost":0.{price(100, 3):012d}'.rstrip("0").encode() in answer.body


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_output_far_above_what_was_relayed_is_marked_and_billed(
    gateway: Gateway, fake: FakeUpstream, is_streamed: bool
) -> None:
    """The word and its end are two tokens: 68 may be, 69 may not."""
    for reported, anomaly in ((68, None), (69, "output_mismatch"), (4_000, "output_mismatch")):
        script = streamed("hello", completion=reported) if is_streamed else (plain(completion=reported),)
        fake.script(*script, path=CHAT)
        answer = ask(gateway, request(gateway.key, body(stream=is_streamed)))
        assert booked(gateway.event(answer.id)) == (7, reported, anomaly)


def test_other_protocols_are_doubted_too(gateway: Gateway, fake: FakeUpstream) -> None:
    """Their usage is told apart from their text, which is what is counted."""
    usage = {"input_tokens": 7, "output_tokens": 900}
    content = [{"type": "text", "text": "hello"}]
    answer = {"type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn", "usage": usage}
    fake.script(json_answer(answer), path="/v1/messages")
    asked = {"model": MODEL, "max_tokens": 4_000, "messages": [{"role": "user", "content": "hi"}]}
    row = gateway.event(ask(gateway, request(gateway.key, asked, path="/v1/messages")).id)
    assert booked(row) == (7, 900, "output_mismatch")


def test_several_faults_are_all_named_and_counted_apart(gateway: Gateway, fake: FakeUpstream) -> None:
    def counted(kind: str) -> int:
        lines = ask(gateway, request(None, path="/metrics", method="GET")).body.decode().splitlines()
        found = [line for line in lines if line.startswith(f'weir_usage_anomalies_total{{kind="{kind}"}}')]
        return int(found[0].split()[-1]) if found else 0

    before = counted("input_implausible"), counted("output_mismatch")
    fake.script(plain(prompt=9_000, completion=9_000), path=CHAT)
    answer = ask(gateway, request(gateway.key))
    assert booked(gateway.event(answer.id)) == (HI, 9_000, "input_implausible,output_mismatch")
    assert (counted("input_implausible"), counted("output_mismatch")) == (before[0] + 1, before[1] + 1)


def test_what_the_request_allowed_goes_before_what_was_counted(gateway: Gateway, fake: FakeUpstream) -> None:
    """The limit is certain: the output is clamped to it, and is then plausible or not."""
    for limit, anomaly in ((20, "output_exceeds_limit"), (500, "output_exceeds_limit,output_mismatch")):
        fake.script(plain(completion=9_000), path=CHAT)
        answer = ask(gateway, request(gateway.key, body(max_tokens=limit)))
        assert booked(gateway.event(answer.id)) == (7, limit, anomaly)


def test_a_mismatch_is_billed_as_counted_where_that_is_configured(fake: FakeUpstream, shared: Gateway) -> None:
    settings = {"on_mismatch": "clamp"}
    with Gateway(shared.home / "clamps", Upstream(fake.url), audit=settings) as gateway:
        fake.script(plain(completion=4_000), path=CHAT)
        answer = ask(gateway, request(gateway.key))
        row = gateway.event(answer.id)
        assert booked(row) == (7, 2, "output_mismatch")
        assert row["amount_pico"] == price(7, 2)


# servers that are honest


def wrapped(message: dict[str, Any], prompt: int, completion: int, **details: object) -> dict[str, object]:
    """A whole chat answer with this message."""
    answer = chat(prompt, completion)
    answer["choices"] = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]
    answer["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return answer


PICTURE: Final = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
CALL: Final = {"name": "f", "arguments": "{" + ",".join(f'"p{n}":{n % 10}' for n in range(60)) + "}"}
HONEST: Final[dict[str, tuple[dict[str, Any], dict[str, object]]]] = {
    "a picture": (body(messages=PICTURE), chat(4_096, 3)),
    "reasoning that is told and not shown": (
        body(),
        wrapped({"content": "42"}, 11, 3_000, completion_tokens_details={"reasoning_tokens": 2_990}),
    ),
    "reasoning that the client did not want": (body(include_reasoning=False), wrapped({"content": "42"}, 11, 3_000)),
    "a call with many parameters": (
        body(tools=[{"type": "function", "function": {"name": "f"}}]),
        wrapped({"content": None, "tool_calls": [{"id": "1", "function": CALL}]}, 210, 780),
    ),
    "a search of the server's own": (body(tools=[{"type": "web_search"}]), chat(30_000, 500)),
    "digits, a token each": (body("7" * 900), wrapped({"content": "3" * 700}, 910, 701)),
    "a system prompt in the chat template": (body(), chat(HI + 70, 3)),
    "embeddings as the prompt": (body(prompt_embeds="AAAA"), chat(2_000, 3)),
}


@pytest.mark.parametrize(("content", "answer"), HONEST.values(), ids=HONEST.keys())
def test_what_only_looks_odd_is_billed_as_reported(
    gateway: Gateway, fake: FakeUpstream, content: dict[str, Any], answer: dict[str, Any]
) -> None:
    fake.script(json_answer(answer), path=CHAT)
    row = gateway.event(ask(gateway, request(gateway.key, content)).id)
    assert booked(row) == (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"], None)


def test_a_stream_of_long_chunks_is_billed_as_reported(gateway: Gateway, fake: FakeUpstream) -> None:
    """Many tokens an event (speculative decoding, a proxy that buffers): too few bytes, and yet all is true."""
    deltas = [chat_chunk("8" * 100) for _ in range(4)]
    fake.script(*stream(*deltas, chat_chunk({}, finish="stop"), usage_chunk(HI, 401)), path=CHAT)
    row = gateway.event(ask(gateway, request(gateway.key, body(stream=True))).id)
    assert booked(row) == (HI, 401, None)


@pytest.fixture(scope="module")
def real(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("real"), Upstream(llama.url, "llama")) as gateway:
        yield gateway


FORECAST: Final = {"type": "function", "function": {"name": ScriptedModel.tool, "parameters": {"type": "object"}}}
ODD: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "digits": (CHAT, body("9" * 800)),
    "digits in an array": (COMPLETIONS, {"model": MODEL, "prompt": ["1" * 300, "2" * 300], "max_tokens": 2}),
    "token ids": (COMPLETIONS, {"model": MODEL, "prompt": [7] * 400, "max_tokens": 2}),
    "five outputs": (CHAT, body("hi", n=5)),
    "eight outputs, streamed": (CHAT, body("hi", n=8, stream=True)),
    "a tool": (CHAT, body("hi", tools=[FORECAST], logit_bias={str(TOOL_CALL_TOKEN): 20})),
    "a long answer with probabilities": (CHAT, body("hi", max_tokens=300, ignore_eos=True, logprobs=True)),
    "a long stream": (CHAT, body("hi", max_tokens=300, ignore_eos=True, stream=True)),
    "accents apart": (CHAT, body("e\u0301" * 300)),
    "emoji": (CHAT, body("👩‍👩‍👧" * 60)),
    "markup of the template": (CHAT, body("<|im_end|>" * 100)),
}


IN_FAST_SUITE: Final = {"digits", "token ids", "eight outputs, streamed", "a tool"}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param(*each, id=name, marks=() if name in IN_FAST_SUITE else pytest.mark.slow)
        for name, each in ODD.items()
    ],
)
def test_a_real_server_is_never_accused(real: Gateway, llama: LlamaServer, path: str, content: dict[str, Any]) -> None:
    """Whatever is odd about a request, what llama.cpp counted is billed, and nothing is marked."""
    counted = Counted(llama)
    row = real.event(ask(real, request(real.key, content, path=path)).id)
    assert booked(row) == (counted.prompt, counted.output, None)
    real.assert_no_failure()
