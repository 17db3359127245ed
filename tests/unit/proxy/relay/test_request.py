"""What is read of a body is what the upstream gets, and no reading of it makes an answer cheaper than it is."""

import json
from typing import Any

import orjson
import pytest

from proxy.meter.steps import Outputs
from proxy.relay.refusals import Refusal
from proxy.relay.request import CHAT, COMPLETIONS, Ask, Forwarded, forward, read

MESSAGES = [{"role": "user", "content": "hi"}]


def ask(endpoint: str = CHAT, **fields: Any) -> Ask:
    """A request that is accepted."""
    taken = read(endpoint, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())
    assert isinstance(taken, Ask), taken
    return taken


def refusal(raw: bytes, endpoint: str = CHAT) -> Refusal:
    """A request that is not."""
    refused = read(endpoint, raw)
    assert isinstance(refused, Refusal), refused
    assert refused.status == 400
    return refused


def sent(taken: Ask, *, llama: bool = False) -> tuple[dict[str, Any], Forwarded]:
    """What the upstream gets, read by another parser."""
    forwarded = forward(taken, "upstream/M", reports_each_output=llama)
    return json.loads(forwarded.raw), forwarded


# I8: one value


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b'{"model":"cheap","model":"m"}', {"model": "m"}),
        (b'{"model":"m","max_tokens":1,"max_tokens":7}', {"model": "m", "max_tokens": 7}),
        (b'{"model":"m","m\\u0061x_tokens":7}', {"model": "m", "max_tokens": 7}),
        (b' \r\n\t{ "model" : "m" , "x" : [ 1 , 2.50 , -0 , 1E2 ] } \n', {"model": "m", "x": [1, 2.5, 0, 100.0]}),
        (b'{"model":"m","x":"\\u00e9\\ud83d\\ude00\\u0000\\u2028"}', {"model": "m", "x": "é😀\x00\u2028"}),
        (b'{"model":"m","x":18446744073709551615}', {"model": "m", "x": 2**64 - 1}),
        (b'{"model":"m","x":18446744073709551616}', {"model": "m", "x": float(2**64)}),
        (b'{"model":"m","x":-9223372036854775808}', {"model": "m", "x": -(2**63)}),
        (b'{"model":"m","x":0.1,"y":1e-400}', {"model": "m", "x": 0.1, "y": 0.0}),
        (b'{"model":"m","":{},"unknown":null,"tools":[]}', {"model": "m", "": {}, "unknown": None, "tools": []}),
    ],
)
def test_the_upstream_gets_the_value_that_was_admitted(raw: bytes, body: dict[str, Any]) -> None:
    """One reading of duplicate keys, escapes and numbers, written out again; unknown fields pass."""
    taken = read(CHAT, raw)
    assert isinstance(taken, Ask)
    assert taken.body == body
    assert sent(taken)[0] == {**body, "model": "upstream/M"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{}x",
        b"nul",
        b"\xef\xbb\xbf{}",
        b'{"model":"\xff"}',
        b'{"model":"\xc0\xaf"}',
        b'{"model":"\xed\xa0\x80"}',
        b'{"model":"\\ud800"}',
        b'{"model":"m\n"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m","x":NaN}',
        b'{"model":"m","x":Infinity}',
        b'{"model":"m","x":1e400}',
        b'{"model":"m","x":01}',
        b"{'model':'m'}",
        b'{"model":"m",}',
        b'{"model":"m"} // no',
        b"[" * 2_000_000,
        b'{"a":' * 5_000,
        b"\x1f\x8b\x08\x00",
    ],
)
def test_what_is_not_json_in_utf8_is_refused(raw: bytes) -> None:
    """What some parsers forgive, another might read otherwise; recursion bombs among them."""
    assert refusal(raw).code == "invalid_json"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"[]", None),
        (b"null", None),
        (b'"m"', None),
        (b"{}", "model"),
        (b'{"model":""}', "model"),
        (b'{"model":7}', "model"),
        (b'{"model":["m"]}', "model"),
        (b'{"model":"m","stream":1}', "stream"),
        (b'{"model":"m","stream":"true"}', "stream"),
        (b'{"model":"m","stream":{}}', "stream"),
        (b'{"model":"m","stream":true,"stream_options":false}', "stream_options"),
        (b'{"model":"m","stream":true,"stream_options":[]}', "stream_options"),
        (b'{"model":"m","stream":true,"stream_options":"include_usage"}', "stream_options"),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":"no"}}', "stream_options"),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":0}}', "stream_options"),
        *(
            (b'{"model":"m","%s":%s}' % (f, v), f.decode())
            for f in (b"n", b"n_cmpl", b"best_of")
            for v in (b"0", b"-1", b"2.0", b'"2"', b"true", b"[2]", b"1025")
        ),
        *(
            (b'{"model":"m","%s":%s}' % (f, v), f.decode())
            for f in (b"max_tokens", b"max_completion_tokens", b"n_predict")
            for v in (b"7.0", b"20.7", b'"7"', b"true", b"false", b"[]", b"1e2", b"99999999999999999999")
        ),
        (b'{"model":"m","n":2,"n_cmpl":1}', "n_cmpl"),
        (b'{"model":"m","n":1,"n_cmpl":2}', "n_cmpl"),
    ],
)
def test_a_wrong_type_in_a_field_that_weir_reads_is_refused(raw: bytes, param: str | None) -> None:
    """llama.cpp takes 20.7 for 20 and true for 1, and prefers `n_cmpl`: what it reads otherwise must not reach it."""
    refused = refusal(raw)
    assert (refused.code, refused.param) == ("invalid_request", param)


@pytest.mark.parametrize("depth", [253, 254])
def test_a_body_may_be_as_deep_as_it_can_be_written(depth: int) -> None:
    """With many brackets or few."""
    for more in (b"", b',"y":' + b"[[]," * 200 + b"[]" + b"]" * 200):
        taken = read(CHAT, b'{"model":"m","x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + more + b"}")
        assert isinstance(taken, Ask)
        assert sent(taken)[0]["x"] == json.loads("[" * (depth - 1) + "]" * (depth - 1))


@pytest.mark.parametrize("depth", [255, 300, 1_023])
def test_a_body_too_deep_to_be_written_is_refused(depth: int) -> None:
    """orjson reads 1,024 levels and writes 254: found by reading, not by a crash once the request is admitted."""
    assert refusal(b'{"model":"m","x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}").code == "invalid_request"
    assert (
        refusal(b'{"model":"m","x":' + b'{"a":' * (depth - 1) + b"1" + b"}" * (depth - 1) + b"}").code
        == "invalid_request"
    )


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    """Prompts are private: the parser's words tell where, not what."""
    assert "secret" not in refusal(b'{"model":"m","messages":[{"content":"secret"').message


# usage that was asked for, and usage that was not


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": None}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": True, "continuous_usage_stats": True, "x": 1}}, True),
        ({"stream_options": {"include_usage": False, "continuous_usage_stats": True, "x": 1}}, False),
    ],
)
def test_a_stream_always_reports_usage_and_shows_it_only_where_it_was_asked_for(
    options: dict[str, Any], wants: bool
) -> None:
    """Captured from vLLM: `continuous_usage_stats` is idle without `include_usage`; so it goes, if that is ours."""
    for llama in (True, False):
        taken = ask(stream=True, **options)
        body, forwarded = sent(taken, llama=llama)
        given = options.get("stream_options") or {}
        kept = {name: value for name, value in given.items() if wants or name != "continuous_usage_stats"}
        assert body == {**taken.body, "model": "upstream/M", "stream_options": {**kept, "include_usage": True}}
        assert taken.body.get("stream_options") == options.get("stream_options"), (
            "the client's own value stays as it is"
        )
        assert (taken.wants_usage, forwarded.hides_usage, forwarded.gathers) == (wants, not wants, False)


def test_vllm_is_asked_to_count_the_reasoning_that_it_does_not_show() -> None:
    """Nowhere else, for each event has to be looked into then; and what the client asked for itself it sees."""
    both, shown = {"include_usage": True, "continuous_usage_stats": True}, {"include_usage": True}
    cases: list[tuple[object, dict[str, Any], bool, bool]] = [
        (False, {}, True, True),
        (0, {}, True, True),
        (False, shown, True, True),
        (False, {"continuous_usage_stats": True}, True, True),
        (False, both, True, False),
        (False, {}, False, False),
        (True, {}, True, False),
        (None, {}, True, False),
    ]
    for wanted, options, is_vllm, hides in cases:
        taken = ask(stream=True, include_reasoning=wanted, stream_options=options)
        forwarded = forward(taken, "M", reports_each_output=False, is_vllm=is_vllm)
        counts = json.loads(forwarded.raw)["stream_options"].get("continuous_usage_stats", False)
        assert (counts, forwarded.hides_running) == (hides or options == both, hides), (wanted, options)
    whole = forward(ask(include_reasoning=False), "M", reports_each_output=False, is_vllm=True)
    assert ("stream_options" in json.loads(whole.raw), whole.hides_running) == (False, False)


@pytest.mark.parametrize(
    "fields",
    [{}, {"stream": False}, {"stream": None}, {"stream_options": "x"}, {"stream_options": {"include_usage": True}}],
)
def test_an_answer_that_is_not_streamed_is_asked_for_as_it_was(fields: dict[str, Any]) -> None:
    """vLLM refuses `stream_options` without `stream`: to add them would break it, to drop them hide the mistake."""
    taken = ask(**fields)
    body, forwarded = sent(taken)
    assert body == {**taken.body, "model": "upstream/M"}
    assert (taken.streams, taken.wants_usage, forwarded.hides_usage, forwarded.gathers) == (False, True, False, False)


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"stream": False, "max_tokens": 3, "tools": [{}], "logprobs": False}),
        (COMPLETIONS, {"prompt": "a", "echo": True}),
        (CHAT, {"n": 2}),
        (CHAT, {"n_cmpl": 2, "logprobs": True}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": "a", "n": 3}),
    ],
)
def test_whole_answers_of_llama_cpp_are_gathered_from_a_stream(endpoint: str, fields: dict[str, Any]) -> None:
    """It can not be stopped otherwise, and reports only the first output; others are asked as the client asked."""
    taken = ask(endpoint, **fields, stream_options="x")
    body, forwarded = sent(taken, llama=True)
    assert body == {**taken.body, "model": "upstream/M", "stream": True, "stream_options": {"include_usage": True}}
    assert (forwarded.gathers, forwarded.hides_usage) == (True, False)
    body, forwarded = sent(taken)
    assert body == {**taken.body, "model": "upstream/M"}
    assert not forwarded.gathers
    assert not sent(ask(endpoint, **{**fields, "stream": True}), llama=True)[1].gathers


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name in ("logprobs", "top_logprobs", "n_probs") for value in (True, 2)),
        {"verbose": True},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "He"}]},
    ],
)
def test_what_a_stream_does_not_tell_is_asked_for_whole(fields: dict[str, Any]) -> None:
    """Equal bytes come before an early stop: with one output, these answers differ from what their stream says."""
    taken = ask(CHAT, **fields)
    body, forwarded = sent(taken, llama=True)
    assert (forwarded.gathers, body) == (False, {**taken.body, "model": "upstream/M"})
    assert sent(ask(CHAT, **fields, n=2), llama=True)[1].gathers


# outputs and their limit


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("The", 1),
        (["The"], 1),
        (["The", "Hello"], 2),
        ([760, 1156], 1),
        ([760, "Hello"], 1),
        (["Hello", 760], 1),
        ([["Hello", 760], "x"], 2),
        ([[760], [1156, 5]], 2),
        ([{"prompt_string": "Hello"}, "x"], 2),
        ({"prompt_string": "Hello"}, 1),
        ([], 1),
        (None, 1),
        (7, 1),
    ],
)
def test_prompts_are_counted_as_llama_cpp_counts_them(prompt: object, prompts: int) -> None:
    """Measured on b11549 by the number of choices; an id anywhere makes the list one prompt. A chat has one anyway."""
    assert ask(COMPLETIONS, prompt=prompt).outputs == Outputs(prompts, 1)
    assert ask(CHAT, prompt=prompt).outputs == Outputs(1, 1)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"n_predict": 7}, 7),
        ({"max_tokens": 0}, 1),
        ({"max_tokens": 1, "n_predict": 20}, 20),
        ({"max_tokens": 20, "n_predict": 1}, 20),
        ({"max_tokens": 1, "max_completion_tokens": 20}, 20),
        ({"max_tokens": 20, "max_completion_tokens": 1}, 20),
        ({"max_completion_tokens": 20, "n_predict": None}, 20),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 2, "n_predict": -1}, None),
        ({"max_tokens": -1, "n_predict": 3}, None),
        ({"max_tokens": 7, "n": 2}, 14),
        ({"max_tokens": 7, "n_cmpl": 2}, 14),
        ({"max_tokens": 7, "n": 2, "n_cmpl": 2}, 14),
        ({"max_tokens": 7, "n": None, "n_cmpl": 3}, 21),
        ({"max_tokens": 7, "best_of": 5}, 35),
        ({"max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ({"max_tokens": 7, "n": 2, "prompt": ["a", "b", "c"]}, 42),
        ({"max_tokens": 2**63}, 2**63),
        ({"max_tokens": 7, "prompt_embeds": "AAAA"}, None),
    ],
)
def test_the_limit_is_never_below_what_a_server_may_generate(fields: dict[str, Any], limit: int | None) -> None:
    """Measured on llama.cpp: 20 tokens for `max_tokens: 1, n_predict: 20`, 44 for `max_tokens: 2, n_predict: -1`.

    A limit that is too low would clamp an honest report, and give the rest away.
    """
    assert ask(COMPLETIONS, **fields).output_tokens_max == limit
    assert ask(COMPLETIONS, **fields).limit_on("llamacpp") == limit


@pytest.mark.parametrize(
    ("kind", "endpoint", "fields", "limit"),
    [
        ("llamacpp", CHAT, {"n_predict": 7}, 7),
        ("vllm", CHAT, {"n_predict": 7}, None),
        ("sglang", CHAT, {"n_predict": 7}, None),
        ("openai", CHAT, {"n_predict": 7}, None),
        ("vllm", CHAT, {"max_completion_tokens": 7}, 7),
        ("sglang", CHAT, {"max_completion_tokens": 7}, 7),
        ("vllm", COMPLETIONS, {"max_completion_tokens": 7}, None),
        ("llamacpp", COMPLETIONS, {"max_completion_tokens": 7}, 7),
        ("ollama", CHAT, {"max_completion_tokens": 7}, None),
        ("lmstudio", CHAT, {"max_completion_tokens": 7}, None),
        ("auto", CHAT, {"max_completion_tokens": 7}, None),
        ("vllm", CHAT, {"max_completion_tokens": 0}, None),
        ("llamacpp", CHAT, {"max_completion_tokens": 0}, 1),
        ("ollama", CHAT, {"max_tokens": 0}, None),
        ("ollama", CHAT, {"max_tokens": 0, "max_completion_tokens": 7}, None),
        ("vllm", CHAT, {"max_tokens": 7, "max_completion_tokens": 0}, 7),
        ("vllm", CHAT, {"max_tokens": 0, "max_completion_tokens": 7}, 7),
        *(
            (kind, one, {"max_tokens": 7}, 7)
            for kind in ("vllm", "ollama", "openai", "auto")
            for one in (CHAT, COMPLETIONS)
        ),
        ("openai", CHAT, {"max_tokens": 7, "n_predict": 20}, 20),
        ("openai", CHAT, {"max_tokens": 7, "n_predict": -1}, None),
        ("openai", CHAT, {}, None),
    ],
)
def test_a_limit_that_a_server_does_not_know_limits_nothing(
    kind: str, endpoint: str, fields: dict[str, Any], limit: int | None
) -> None:
    """`n_predict: 1` sent to vLLM would be billed as one token of the thousands that it generates."""
    assert ask(endpoint, **fields).limit_on(kind) == limit


@pytest.mark.parametrize(
    ("fields", "n"),
    [
        ({}, 1),
        ({"n": 2}, 2),
        ({"n_cmpl": 2}, 2),
        ({"n": None, "n_cmpl": 3}, 3),
        ({"best_of": 5}, 1),
        ({"n": 2, "best_of": 5}, 2),
    ],
)
def test_outputs_are_those_that_come_back(fields: dict[str, Any], n: int) -> None:
    """`best_of` makes candidates, not outputs; llama.cpp does not know it (measured)."""
    assert ask(**fields).outputs == Outputs(1, n)


@pytest.mark.parametrize(("stop", "has"), [(None, False), ("", False), ([], False), ("x", True), (["x"], True)])
def test_stop_texts_are_noted(stop: object, has: bool) -> None:
    """They decide whether an end is a token."""
    assert ask(stop=stop).has_stop_texts is has
    assert ask().has_stop_texts is False


def test_a_forwarded_body_is_compact_and_keeps_its_order() -> None:
    """Prefix caches hash what they get."""
    taken = read(CHAT, b'{ "b": 1, "model": "m", "a": [1, 2] }')
    assert isinstance(taken, Ask)
    assert forward(taken, "M", reports_each_output=False).raw == orjson.dumps({"b": 1, "model": "M", "a": [1, 2]})
