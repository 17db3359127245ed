"""Prompts are counted as real servers count them; figures here were reported by llama.cpp (with Qwen3.5's
template) and vLLM."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens.patterns import LLAMA3, PreTokenizer
from billing.tokens.prompt import count_prompt, media_parts
from billing.tokens.ranks import Ranks
from billing.tokens.vocabulary import Vocabulary, build
from tests.unit.tokens.texts import json_values, texts

CHAT = "/v1/chat/completions"
ENDPOINTS = (
    *(
        CHAT,
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
    ),
    *("/v1/rerank", "/api/chat", "/api/generate", "/api/embed", "/elsewhere"),
)
HI = {"role": "user", "content": "hi"}
HELLO = {"role": "user", "content": "Say hello."}
FORECAST = {
    "type": "function",
    "function": {
        "name": "get_forecast",
        "description": "Forecast",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}
ODD_TOOL = {
    "type": "function",
    "function": {
        "parameters": {
            "type": "object",
            "properties": {"b": {"type": "integer"}, "a": {"type": "string", "enum": ["é", "<x>"]}},
        },
        "strict": True,
        "name": "f",
    },
    "x": 1,
}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


def part(text: str) -> dict[str, str]:
    """A text part."""
    return {"type": "text", "text": text}


def call(name: str, arguments: str) -> dict[str, object]:
    """A tool call of an earlier answer."""
    return {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (11, {"messages": [HI]}),
        (13, {"messages": [HELLO]}),
        (15, {"messages": [HELLO], **NO_THINKING}),
        (13, {"messages": [HI], "reasoning_effort": "none"}),
        (13, {"messages": [{"role": "user", "content": [part("a b"), part("c d")]}]}),
        (18, {"messages": [{"role": "developer", "content": "Be brief"}, HI]}),
        (17, {"messages": [{"role": "system", "content": [part("x"), part("y")]}, HI]}),
        (16, {"messages": [{"role": "system", "content": ""}, HI]}),
        (23, {"messages": [HI, {"role": "assistant", "content": " yo ", "reasoning_content": "why"}, HI]}),
        (23, {"messages": [HI, {"role": "assistant", "content": "<think>\nq\n</think>\n\nyo"}, HI]}),
        (14, {"messages": [HI, {"role": "assistant", "content": "So"}]}),
        (14, {"messages": [{"role": "user", "content": "a<|im_end|>b<think>"}]}),
        (14, {"messages": [{"role": "user", "content": "\u3000\x1c hi \u00a0\x0b"}]}),
        (10, {"messages": [{"role": "user", "content": None}]}),
        (6, {"messages": [HI], "add_generation_prompt": False}),
    ],
)
def test_a_chat_of_text_is_exact(qwen: Vocabulary, expected: int, body: dict[str, object]) -> None:
    """Roles, parts, system messages, earlier answers with reasoning, an answer to continue, special tokens in
    a text."""
    assert count_prompt(qwen, CHAT, body, nfc=False) == expected


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (267, {"messages": [HELLO], "tools": [FORECAST]}),
        (274, {"messages": [HI], "tools": [ODD_TOOL]}),
        (274, {"messages": [HI], "tools": [ODD_TOOL], "tool_choice": "none"}),
        (277, {"messages": [{"role": "system", "content": " Be brief \n"}, HI], "tools": [ODD_TOOL]}),
        (
            313,
            {
                "messages": [
                    HELLO,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [call("get_forecast", '{"days":7}')],
                    },
                    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
                ],
                "tools": [FORECAST],
            },
        ),
        (
            394,
            {
                "messages": [
                    HI,
                    {
                        "role": "assistant",
                        "content": "ok",
                        "tool_calls": [
                            call("f", '{"a": true, "b": {"x": [1, null]}, "c": "t", "d":1.50,"e":null}'),
                            call("g", "{}"),
                        ],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "r1"},
                    {"role": "tool", "tool_call_id": "2", "content": [part("r2"), part("r3")]},
                ],
                "tools": [ODD_TOOL],
            },
        ),
        (
            45,
            {
                "messages": [
                    HI,
                    {
                        "role": "assistant",
                        "content": None,
                        "reasoning_content": " deep ",
                        "tool_calls": [call("f", "{}")],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "r1"},
                ]
            },
        ),
    ],
)
def test_a_chat_with_tools_is_exact(qwen: Vocabulary, expected: int, body: dict[str, object]) -> None:
    """Tools are rebuilt as servers rebuild them; calls, results and kept reasoning follow the template's
    rules."""
    assert count_prompt(qwen, CHAT, body, nfc=False) == expected


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (11, {"messages": [HI]}),
        (18, {"messages": [HI], "system": "Be brief"}),
        (18, {"messages": [HI], "system": [part("Be"), part(" brief")]}),
        (
            256,
            {
                "messages": [HI],
                "tools": [
                    {
                        "name": "f",
                        "description": "d",
                        "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
                    }
                ],
            },
        ),
        (
            66,
            {
                "messages": [
                    HI,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "deep", "signature": ""},
                            part("ok"),
                            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "x"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t1", "content": [part("r1")]},
                            {"type": "tool_result", "tool_use_id": "t2", "content": "r2"},
                            part("go on"),
                        ],
                    },
                ]
            },
        ),
    ],
)
def test_the_anthropic_shape_is_exact(qwen: Vocabulary, expected: int, body: dict[str, object]) -> None:
    """Blocks, a system field, tools with input_schema; the same for the endpoint that only counts."""
    assert count_prompt(qwen, "/v1/messages", body, nfc=False) == expected
    assert count_prompt(qwen, "/v1/messages/count_tokens", body, nfc=False) == expected


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (11, {"input": "hi"}),
        (18, {"input": "hi", "instructions": "Be brief"}),
        (11, {"input": [HI]}),
        (13, {"input": "hi", "reasoning": {"effort": "none"}}),
        (
            256,
            {
                "input": "hi",
                "tools": [
                    {
                        "type": "function",
                        "name": "f",
                        "description": "d",
                        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
                    }
                ],
            },
        ),
        (
            58,
            {
                "input": [
                    HI,
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "deep"}]},
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "ok"}],
                    },
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":"x"}'},
                    {"type": "function_call_output", "call_id": "c", "output": "r1"},
                ]
            },
        ),
    ],
)
def test_the_responses_shape_is_exact(qwen: Vocabulary, expected: int, body: dict[str, object]) -> None:
    """Items of one answer (reasoning, text, call) are one turn."""
    assert count_prompt(qwen, "/v1/responses", body, nfc=False) == expected


@pytest.mark.parametrize(
    ("expected", "prompt"),
    [
        (1, "hi"),
        (3, "Say hello."),
        (4, ["hi", "Say hello."]),
        (3, [44240, 23066, 13]),
        (5, [[44240, 23066, 13], [1, 2]]),
        (2, ["hi", 5]),
        (1, "<|im_end|>"),
        (0, None),
        (0, {"a": 1}),
        (0, []),
    ],
)
def test_raw_prompts_are_exact(qwen: Vocabulary, expected: int, prompt: object) -> None:
    """Texts, token ids, and lists of both, on every endpoint without a template."""
    assert count_prompt(qwen, "/v1/completions", {"prompt": prompt}, nfc=False) == expected
    assert count_prompt(qwen, "/v1/embeddings", {"input": prompt}, nfc=False) == expected
    assert count_prompt(qwen, "/api/embed", {"input": prompt}, nfc=False) == expected


@given(st.lists(texts, max_size=4))
def test_an_array_of_prompts_counts_as_the_prompts(qwen: Vocabulary, prompts: list[str]) -> None:
    """Servers read each on its own (llama.cpp reports only the first: see its upstream's meter)."""
    each = [count_prompt(qwen, "/v1/completions", {"prompt": prompt}, nfc=False) for prompt in prompts]
    assert count_prompt(qwen, "/v1/completions", {"prompt": prompts}, nfc=False) == sum(each)


def test_ollama_bodies_are_counted(qwen: Vocabulary) -> None:
    """A chat, a prompt with a system text, a raw prompt, and thinking switched off."""
    assert count_prompt(qwen, "/api/chat", {"messages": [HI]}, nfc=False) == 11
    assert count_prompt(qwen, "/api/chat", {"messages": [HI], "think": False}, nfc=False) == 13
    assert count_prompt(qwen, "/api/generate", {"prompt": "hi", "system": "Be brief"}, nfc=False) == 18
    assert count_prompt(qwen, "/api/generate", {"prompt": "hi", "raw": True}, nfc=False) == 1


def test_a_rerank_reads_the_query_with_each_document(qwen: Vocabulary) -> None:
    """An estimate: query, document and four tokens of markup, for each document."""
    body = {"query": "Say hello.", "documents": ["hi", {"text": "hi"}, "hi"]}
    assert count_prompt(qwen, "/v1/rerank", body, nfc=False) == 3 * (3 + 1 + 4)


def test_prompts_are_composed_for_servers_that_do(qwen: Vocabulary) -> None:
    """'école' with a separate accent is 3 tokens for llama.cpp and 1 for vLLM."""
    body = {"messages": [{"role": "user", "content": "e\u0301cole"}]}
    assert count_prompt(qwen, CHAT, body, nfc=False) - count_prompt(qwen, CHAT, body, nfc=True) == 2


def test_what_is_not_text_is_counted_as_parts() -> None:
    """Only the server knows the tokens of a picture; here they are announced."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    nested = {"type": "tool_result", "content": [{"type": "image", "source": {}}]}
    body = {"messages": [HI, {"role": "user", "content": [part("a"), picture, sound, nested]}]}
    assert media_parts(CHAT, body) == 3
    assert media_parts(CHAT, {"messages": [{"role": "user", "content": "<|vision_start|><|image_pad|>"}]}) == 0
    assert media_parts("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["AA", "BB"]}]}) == 2
    assert media_parts("/api/generate", {"prompt": "a", "images": ["AA"]}) == 1
    assert media_parts("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}) == 1
    assert media_parts(CHAT, None) == 0


def test_a_vocabulary_with_another_template_is_estimated() -> None:
    """Text, five tokens of markup a turn, and what is put around each prompt."""
    ranks = Ranks({bytes((byte,)): byte for byte in range(256)})
    other = build("bytes", ranks, PreTokenizer(LLAMA3), {"<|begin_of_text|>": 256}, 1)
    assert count_prompt(other, CHAT, {"messages": [HI, HELLO]}, nfc=False) == 1 + 3 * 5 + 2 + 10
    assert count_prompt(other, "/v1/completions", {"prompt": ["hi", "hi"]}, nfc=False) == 2 * (1 + 2)


@settings(max_examples=150, deadline=None)
@given(body=json_values, endpoint=st.sampled_from(ENDPOINTS))
def test_no_json_document_raises(qwen: Vocabulary, body: object, endpoint: str) -> None:
    """Whatever a client sends, there is a count."""
    assert count_prompt(qwen, endpoint, body, nfc=True) >= 0
    assert media_parts(endpoint, body) >= 0


_odd = st.one_of(json_values, st.sampled_from([5, None, True, "x", ["x"], {"x": 1}]))
_messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.one_of(st.sampled_from(["system", "user", "assistant", "tool", "developer"]), _odd),
            "content": st.one_of(_odd, st.lists(st.dictionaries(st.sampled_from(["type", "text", "content"]), _odd))),
            "type": st.one_of(st.sampled_from(["function_call", "function_call_output", "reasoning", "message"]), _odd),
            "tool_calls": st.lists(
                st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": _odd, "arguments": _odd})})
            ),
            "reasoning_content": _odd,
            "output": _odd,
            "arguments": _odd,
            "images": _odd,
        },
    ),
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(
    endpoint=st.sampled_from(ENDPOINTS),
    body=st.fixed_dictionaries(
        {"messages": _messages, "input": st.one_of(_messages, _odd), "prompt": _odd},
        optional={
            "tools": st.one_of(
                _odd, st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": _odd})}))
            ),
            "chat_template_kwargs": _odd,
            "reasoning": _odd,
            "system": _odd,
            "query": _odd,
            "documents": _odd,
            "raw": st.booleans(),
        },
    ),
)
def test_no_body_with_fields_of_wrong_types_raises(qwen: Vocabulary, endpoint: str, body: dict[str, object]) -> None:
    """The right fields with anything in them."""
    assert count_prompt(qwen, endpoint, body, nfc=True) >= 0
    assert media_parts(endpoint, body) >= 0


def test_deep_and_huge_bodies_are_counted(qwen: Vocabulary) -> None:
    """Nested as deeply as a parser allows, and longer than tiktoken bears."""
    deep: object = json.loads("[" * 900 + "]" * 900)
    for _ in range(5_000):
        deep = [deep]
    nested = {
        "messages": [{"role": "user", "content": deep, "tool_calls": [call("f", "[" * 100_000)]}],
        "tools": [deep],
    }
    assert count_prompt(qwen, CHAT, nested, nfc=False) > 200
    spaces = {"messages": [{"role": "user", "content": "x" + " " * 1_100_000 + "x"}]}
    assert count_prompt(qwen, CHAT, spaces, nfc=True) > 8_000
