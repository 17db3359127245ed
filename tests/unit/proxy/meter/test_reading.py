"""Usage is read as servers write it, refused where it is no report, and edited without touching another byte."""

import json
from typing import Any

import pytest

from billing.usage import Usage
from proxy.meter.reading import has_usage, parse, timings_of, usage_of, with_cost
from tests.unit.proxy.meter.streams import LLAMA, VLLM, body, usage

READ: list[tuple[str, dict[str, Any], Usage | None]] = [
    ("llama.cpp", usage(13, 44, total_tokens=57, prompt_tokens_details={"cached_tokens": 9}), Usage(13, 44, 9)),
    (
        "vLLM",
        usage(13, 6, prompt_tokens_details={"cached_tokens": 0}, completion_tokens_details={"reasoning_tokens": 5}),
        Usage(13, 6, 0, 5),
    ),
    ("vLLM without details", usage(13, 6, prompt_tokens_details=None), Usage(13, 6)),
    ("SGLang", usage(13, 44, reasoning_tokens=14), Usage(13, 44, 0, 14)),
    (
        "SGLang, both",
        usage(13, 44, reasoning_tokens=1, completion_tokens_details={"reasoning_tokens": 14}),
        Usage(13, 44, 0, 14),
    ),
    (
        "a detail of none",
        usage(13, 44, reasoning_tokens=14, completion_tokens_details={"reasoning_tokens": 0}),
        Usage(13, 44),
    ),
    (
        "details that say nothing",
        usage(13, 44, reasoning_tokens=14, completion_tokens_details={}),
        Usage(13, 44, 0, 14),
    ),
    ("a wrong sign is the judge's business", usage(-13, 44, reasoning_tokens=-1), Usage(-13, 44, 0, -1)),
    ("a prompt alone", usage(13, 0), Usage(13, 0)),
    ("Ollama's prompt in its cache", usage(0, 44), Usage(0, 44)),
    ("Ollama's zeros on every chunk", usage(0, 0, total_tokens=0), None),
    ("half a report", {"prompt_tokens": 13}, None),
    ("the other half", {"completion_tokens": 44}, None),
    ("nulls", usage(13, None), None),
    ("texts", usage("13", "44"), None),
    ("fractions are no counts, not even whole ones", usage(13.0, 44.0), None),
    ("truth is no count", usage(True, True), None),
    ("wrongly typed details", usage(13, 44, prompt_tokens_details=[9], completion_tokens_details="x"), Usage(13, 44)),
    (
        "OpenAI's parts of a prompt",
        usage(13, 44, prompt_tokens_details={"cached_tokens": 2, "audio_tokens": 3, "image_tokens": 6}),
        Usage(13, 44, 2, 0, 6, 3),
    ),
    ("a picture alone", usage(13, 44, prompt_tokens_details={"image_tokens": 6}), Usage(13, 44, 0, 0, 6)),
    (
        "details of a picture and a wrong type",
        usage(13, 44, prompt_tokens_details={"image_tokens": -6, "audio_tokens": True}),
        Usage(13, 44, 0, 0, -6),
    ),
    ("fractional details", usage(13, 44, prompt_tokens_details={"cached_tokens": 1.5}), Usage(13, 44)),
    ("other conventions", {"input_tokens": 13, "output_tokens": 44}, None),
    ("nothing", {}, None),
]


@pytest.mark.parametrize(("reported", "read"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_a_usage_object_is_read_as_its_server_means_it(reported: dict[str, Any], read: Usage | None) -> None:
    """What is no report must not be taken for one of zero tokens."""
    assert usage_of({"choices": [], "usage": reported}) == read
    assert has_usage({"usage": reported})


@pytest.mark.parametrize("parsed", [None, [], "usage", 5, {}, {"usage": None}, {"usage": []}, {"usage": 7}])
def test_what_has_no_usage_object_has_no_usage(parsed: object) -> None:
    """`data: null` and `usage: null` are everyday things."""
    assert usage_of(parsed) is None
    assert not has_usage(parsed)


@pytest.mark.parametrize(
    ("timings", "read"),
    [
        ({"cache_n": 9, "prompt_n": 4, "predicted_n": 44, "predicted_ms": 86.847}, Usage(13, 44, 9)),
        ({"prompt_n": 4, "predicted_n": 44}, Usage(4, 44)),
        ({"cache_n": None, "prompt_n": 4, "predicted_n": 0}, Usage(4, 0)),
        ({"cache_n": 9, "prompt_n": 4}, None),
        ({"cache_n": 9, "predicted_n": 4}, None),
        ({"cache_n": 0, "prompt_n": 0, "predicted_n": 0}, None),
        ({"prompt_n": 4.0, "predicted_n": 44.0}, None),
        (None, None),
        ([4], None),
    ],
)
def test_llama_cpp_counters_are_a_usage(timings: object, read: Usage | None) -> None:
    """The prompt is what was computed and what came from the cache."""
    assert timings_of({"timings": timings}) == read


@pytest.mark.parametrize("parsed", [None, [], 7, {}, "timings"])
def test_what_has_no_counters_has_no_timings(parsed: object) -> None:
    """Any JSON may come."""
    assert timings_of(parsed) is None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (b'{"a":1}', {"a": 1}),
        (b"null", None),
        (b'{"logprob":-Infinity,"b":[NaN,Infinity]}', {"logprob": None, "b": [None, None]}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'{"a":"\\ud83d","b":1}', {"a": "?", "b": 1}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a":1e400}', {"a": None}),
        (b'{"a":1', None),
        (b"", None),
        (b"[DONE]", None),
        (b"\x00", None),
        (b"[" * 100_000, None),
        (b"[" + b"9" * 5_000 + b"]", None),
    ],
)
def test_what_strict_parsers_refuse_is_read_all_the_same(text: bytes, parsed: object) -> None:
    """A NaN among the logprobs must not make an answer free; and no text raises."""
    assert parse(text) == parsed


COSTS: list[tuple[str, str]] = [
    ('{"usage":{"prompt_tokens":1}}', '{"usage":{"prompt_tokens":1,"cost":0.5}}'),
    ('{ "usage" : { "a" : 1 } }', '{ "usage" : { "a" : 1 ,"cost":0.5} }'),
    ('{"usage":{}}', '{"usage":{"cost":0.5}}'),
    ('{"usage":{ \n}}', '{"usage":{ \n"cost":0.5}}'),
    ('{"usage":{"d":{"e":[{}]}},"z":1}', '{"usage":{"d":{"e":[{}]},"cost":0.5},"z":1}'),
    ('{"t":"\\"usage\\":{","usage":{"a":"}"}}', '{"t":"\\"usage\\":{","usage":{"a":"}","cost":0.5}}'),
    ('{"usage":{"a":1},"t":"\\"usage\\":{\\"a\\":1}"}', '{"usage":{"a":1,"cost":0.5},"t":"\\"usage\\":{\\"a\\":1}"}'),
    ('{"x":{"usage":{"a":1}},"usage":{"a":1}}', '{"x":{"usage":{"a":1}},"usage":{"a":1,"cost":0.5}}'),
    ('{"usage":{"a":1},"x":{"usage":{"a":1}}}', '{"usage":{"a":1,"cost":0.5},"x":{"usage":{"a":1}}}'),
    ('{"usage":{"a":1},"x":[{"usage":{"a":1}}]}', '{"usage":{"a":1,"cost":0.5},"x":[{"usage":{"a":1}}]}'),
    ('{"usage":{"usage":{"a":1}}}', '{"usage":{"usage":{"a":1},"cost":0.5}}'),
    ('{"object":"usage","usage":{"a":1}}', '{"object":"usage","usage":{"a":1,"cost":0.5}}'),
    ('{"usage":{"a":1},"object":"usage"}', '{"usage":{"a":1,"cost":0.5},"object":"usage"}'),
    ('{"usage":{"a":1},"usage":{"a":2}}', '{"usage":{"a":1},"usage":{"a":2,"cost":0.5}}'),
    ('{"usage":null,"usage":{"a":2}}', '{"usage":null,"usage":{"a":2,"cost":0.5}}'),
    ('{"t":"a\\\\","usage":{"a":"\\\\"},"u":"\\\\"}', '{"t":"a\\\\","usage":{"a":"\\\\","cost":0.5},"u":"\\\\"}'),
    ('{"t":"{{[[","usage":{"a":"]]}}"},"u":"}"}', '{"t":"{{[[","usage":{"a":"]]}}","cost":0.5},"u":"}"}'),
    ('{"t":"é\U0001f600","usage":{"a":1}}', '{"t":"é\U0001f600","usage":{"a":1,"cost":0.5}}'),
]


@pytest.mark.parametrize(("text", "edited"), COSTS)
def test_cost_is_added_to_the_usage_that_a_parser_finds_and_to_nothing_else(text: str, edited: str) -> None:
    """Not in a string, not in a nested object, not in the first of two; whitespace stays as it is."""
    reported = json.loads(text)["usage"]
    assert with_cost(text.encode(), "0.5", reported).decode() == edited
    assert json.loads(edited)["usage"] == {**reported, "cost": 0.5}


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ('{"usage":null}', None),
        ("{}", {}),
        ("", {"a": 1}),
        ("[]", {"a": 1}),
        ('{"usage":{"a":1}}', {"a": 2}),
        ('{"x":{"usage":{"a":1}}}', {"a": 2}),
        ('{"usage":[{"a":1}]}', {"a": 1}),
        ('{"usage":{"a":1', {"a": 1}),
        ('{"us\\u0061ge":{"a":1}}', {"a": 1}),
        ('data: {"usage":{"a":\ndata: 1}}\n\n', {"a": 1}),
        ('data: {"usage":\ndata: {"a":1}}\n\n', {"a": 1}),
    ],
)
def test_where_the_usage_does_not_stand_in_one_piece_nothing_is_edited(
    text: str, reported: dict[str, Any] | None
) -> None:
    """A missing cost is a blemish, a broken answer is not to be had back."""
    assert with_cost(text.encode(), "0.5", reported) == text.encode()


def test_cost_is_the_exact_text_of_its_number() -> None:
    """Neither rounded nor rewritten on its way."""
    edited = with_cost(b'{"usage":{"a":1}}', "0.000000000001", {"a": 1})
    assert edited == b'{"usage":{"a":1,"cost":0.000000000001}}'


@pytest.mark.parametrize("value", ["9" * 30, "[" * 300 + "]" * 300, "1.50", "1e2", '"\\u00e9"'])
def test_a_usage_that_is_not_written_as_orjson_would_write_it_gets_its_cost_all_the_same(value: str) -> None:
    """Integers of any size, any depth, other spellings of a number or a letter: found by walking."""
    raw = f'{{"usage":{{"a":{value}}},"b":1}}'
    answer = parse(raw.encode())
    assert isinstance(answer, dict)
    assert with_cost(raw.encode(), "0.5", answer["usage"]).decode() == raw.replace('},"b"', ',"cost":0.5},"b"')


def test_a_cost_that_was_there_is_overruled() -> None:
    """Another gateway's number stays for the eye; parsers take the later one."""
    edited = with_cost(b'{"usage":{"cost":9}}', "0.5", {"cost": 9})
    assert edited == b'{"usage":{"cost":9,"cost":0.5}}'
    assert json.loads(edited)["usage"] == {"cost": 0.5}


@pytest.mark.parametrize(
    "name", [f"{LLAMA}/chat_nonstream", f"{LLAMA}/chat_n2", f"{VLLM}/chat_nonstream", f"{VLLM}/completions"]
)
def test_a_real_answer_keeps_every_other_byte(name: str) -> None:
    """What was added can be cut out again."""
    answer = body(name)
    edited = with_cost(answer, "0.000123", json.loads(answer)["usage"])
    assert edited.replace(b',"cost":0.000123', b"", 1) == answer
    assert json.loads(edited) == {**json.loads(answer), "usage": {**json.loads(answer)["usage"], "cost": 0.000123}}
