"""What is held for a request bounds what any server can make of it, and what is forwarded says so."""

import json
from typing import Any

import pytest

from billing.money import Pico, PicoPerToken
from billing.pricing.quote import UnitPrices
from billing.tokens.prompt import count_prompt
from billing.tokens.vocabulary import Vocabulary
from proxy.meter import endpoints
from proxy.relay import affordable, asks
from proxy.relay.request import Ask

PRICE = UnitPrices(PicoPerToken(3), PicoPerToken(1), PicoPerToken(10), PicoPerToken(12), Pico(100))
MESSAGES = [{"role": "user", "content": "hi"}]
KINDS = ("llamacpp", "vllm", "sglang", "ollama", "lmstudio", "openai")
CHAT, COMPLETIONS = endpoints.CHAT, endpoints.COMPLETIONS


def raw(**fields: Any) -> bytes:
    """A client's body."""
    return json.dumps({"model": "m", **fields}).encode()


def ask(endpoint: str = CHAT, **fields: Any) -> Ask:
    """A request that is accepted."""
    if endpoint in (CHAT, endpoints.MESSAGES, endpoints.OLLAMA_CHAT):
        fields = {"messages": MESSAGES, **fields}
    taken = asks.read(endpoint, raw(**fields))
    assert isinstance(taken, Ask), taken
    return taken


@pytest.mark.parametrize(
    ("endpoint", "fields", "tokens", "outputs"),
    [
        (CHAT, {}, 50, 1),
        (CHAT, {"max_tokens": 7}, 7, 1),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9, "n_predict": 8}, 9, 1),
        (CHAT, {"max_tokens": -1}, 50, 1),
        (CHAT, {"max_tokens": 0}, 1, 1),
        (CHAT, {"max_tokens": 7, "n": 3}, 7, 3),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 7, "n": 3, "best_of": 5}, 7, 10),
        (COMPLETIONS, {"prompt": ["a", "b"]}, 50, 2),
        (endpoints.RESPONSES, {"input": "hi", "max_output_tokens": 7}, 7, 1),
        (endpoints.RESPONSES, {"input": "hi"}, 50, 1),
        (endpoints.MESSAGES, {"max_tokens": 7}, 7, 1),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": 7}}, 7, 1),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": -2}}, 50, 1),
    ],
)
def test_a_request_needs_its_prompt_and_all_tokens_that_it_allows(
    endpoint: str, fields: dict[str, Any], tokens: int, outputs: int
) -> None:
    """At the dearest price of each part, for every output that a server may make."""
    taken = ask(endpoint, **fields)
    need = affordable.need_of(taken, PRICE, 1_000, 50)
    assert affordable.outputs_of(taken) == outputs
    assert need == (1_000 * 3 + 100, outputs * 12, tokens)


@pytest.mark.parametrize("endpoint", sorted(endpoints.PROMPT_ONLY))
def test_what_generates_nothing_needs_nothing_for_it(endpoint: str) -> None:
    taken = ask(endpoint, input="hi", query="q", documents=["d"])
    need = affordable.need_of(taken, PRICE, 1_000, 50)
    assert need.most == need.least == 3_100
    assert affordable.clamped(taken, 1, "llamacpp") is taken


@pytest.mark.parametrize(
    ("fields", "clamped"),
    [
        ({}, {"max_tokens": 5}),
        ({"max_tokens": 7}, {"max_tokens": 5}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": -1}, {"max_tokens": 5}),
        ({"max_completion_tokens": 7}, {"max_completion_tokens": 5}),
        ({"n_predict": 7, "max_tokens": 4}, {"n_predict": 5, "max_tokens": 4}),
        ({"n_predict": -1, "max_completion_tokens": 0}, {"n_predict": 5, "max_completion_tokens": 5}),
        ({"max_tokens": None}, {"max_tokens": 5}),
    ],
)
def test_each_limit_is_clamped_in_the_field_that_the_client_used(
    fields: dict[str, Any], clamped: dict[str, int]
) -> None:
    """On llama.cpp, which knows them all; nothing else of the body changes."""
    taken = ask(**fields)
    limited = affordable.clamped(taken, 5, "llamacpp")
    assert limited.body == {"model": "m", "messages": MESSAGES, **clamped}
    assert limited.output_tokens_max == 5
    assert taken.body.get("max_tokens", 0) == fields.get("max_tokens", 0), "the client's own body is not touched"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n_predict", None])
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_every_kind_of_server_gets_a_limit_that_it_obeys(kind: str, field: str | None, endpoint: str) -> None:
    """vLLM does not know `n_predict`, Ollama and others may not know `max_completion_tokens`."""
    fields = {} if field is None else {field: 100}
    limited = affordable.clamped(ask(endpoint, prompt="hi", n=2, **fields), 5, kind)
    assert limited.limit_on(kind) == 10
    assert {
        limited.body[name] for name in ("max_tokens", "max_completion_tokens", "n_predict") if name in limited.body
    } == {5}
    assert "max_tokens" in limited.body or kind in ("llamacpp", "vllm", "sglang")


@pytest.mark.parametrize(
    ("endpoint", "fields", "place"),
    [
        (endpoints.RESPONSES, {"input": "hi"}, ("max_output_tokens",)),
        (endpoints.RESPONSES, {"input": "hi", "max_output_tokens": 9}, ("max_output_tokens",)),
        (endpoints.MESSAGES, {"max_tokens": 9}, ("max_tokens",)),
        (endpoints.OLLAMA_CHAT, {}, ("options", "num_predict")),
        (endpoints.OLLAMA_CHAT, {"options": {"num_predict": 9, "seed": 1}}, ("options", "num_predict")),
        (endpoints.OLLAMA_GENERATE, {"prompt": "hi", "options": {"num_predict": -1}}, ("options", "num_predict")),
    ],
)
def test_the_other_protocols_are_clamped_in_their_own_field(
    endpoint: str, fields: dict[str, Any], place: tuple[str, ...]
) -> None:
    limited = affordable.clamped(ask(endpoint, **fields), 5, "ollama")
    found: Any = limited.body
    for name in place:
        found = found[name]
    assert found == 5
    assert limited.output_tokens_max == limited.limit_on("ollama") == 5
    assert limited.body.get("options", {}).get("seed") == fields.get("options", {}).get("seed")


PROMPTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": text}]})
    for text in (
        "",
        "hi",
        "a" * 500,
        "\n\n\t" * 50,
        "\x00\x01",
        "日本語のテキスト",
        "e\u0301cole",
        "😀" * 40,
        '"\\' * 40,
    )
]
PROMPTS += [
    (CHAT, {"messages": [{"role": "user", "content": ""}] * 60}),
    (
        CHAT,
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1]}}}]},
    ),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": ["x", "y"]}),
    (endpoints.RERANK, {"query": "a long question " * 9, "documents": ["d"] * 50}),
    (endpoints.EMBEDDINGS, {"input": ["a", "b"]}),
    (endpoints.OLLAMA_GENERATE, {"prompt": "hi", "system": "be brief"}),
]


@pytest.mark.parametrize(("endpoint", "fields"), PROMPTS)
def test_no_prompt_has_more_tokens_than_its_bound(endpoint: str, fields: dict[str, Any], qwen: Vocabulary) -> None:
    """By our own count, which equals that of real servers (tests/unit/tokens), in any form of JSON."""
    taken = ask(endpoint, **fields)
    compact = json.dumps({"model": "m", **fields}, ensure_ascii=False, separators=(",", ":"))
    for body in (raw(**fields), compact.encode()):
        bound = affordable.prompt_tokens_max(taken, len(body))
        for nfc in (False, True):
            counted = count_prompt(qwen, endpoint, taken.body, nfc=nfc)
            assert counted <= affordable.counted_tokens_max(taken, counted)
            assert counted <= bound


PICTURES: list[tuple[str, dict[str, Any]]] = [
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}] * 2}]},
    ),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}] * 2}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}] * 2}]}),
    (endpoints.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}] * 2}]}),
    (endpoints.RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}] * 2}]}),
    (endpoints.OLLAMA_GENERATE, {"prompt": "hi", "images": ["QUJD", "QUJD"]}),
    (endpoints.OLLAMA_CHAT, {"messages": [{"role": "user", "content": "hi", "images": ["QUJD", "QUJD"]}]}),
]


@pytest.mark.parametrize(("endpoint", "fields"), PICTURES)
@pytest.mark.parametrize("is_escaped", [False, True])
def test_a_picture_is_bounded_by_what_servers_make_of_it_at_most(
    endpoint: str, fields: dict[str, Any], is_escaped: bool
) -> None:
    """Though its address is short, and however its name is written."""
    written = raw(**fields)
    for letter in b"aefiou" if is_escaped else b"":
        written = written.replace(b'"%c' % letter, b'"\\u%04x' % letter)
    taken = asks.read(endpoint, written)
    assert isinstance(taken, Ask)
    assert affordable.prompt_tokens_max(taken, len(written)) >= 2 * affordable.MEDIA_TOKENS_MAX
    assert affordable.counted_tokens_max(taken, 10) >= 2 * affordable.MEDIA_TOKENS_MAX
