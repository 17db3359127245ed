"""Usage objects of the OpenAI shape, read tolerantly, and the edits that add `cost` to them or hide them.

`prompt_tokens` includes the cached part, images and audio, and `completion_tokens` the reasoning part (OpenAI,
llama.cpp, vLLM, SGLang); what the details call `image_tokens` and `audio_tokens` is read where it is told. SGLang
also says `reasoning_tokens` at the top level. A wrong sign is kept, for `billing.usage.provable` to judge.

Nothing is free by accident (I11): a report counts only if it is one. Both totals have to be integers, and one of them
other than 0, because Ollama's `/v1/completions` puts a usage of zeros on every chunk: taken at its word, it would make
a stream that is cut free of charge. What is no report is counted from the text.
"""

import json
import re
from typing import Any, TypeGuard

import orjson

from billing.usage import Usage
from proxy.meter.steps import Times

_NUMBERS = (int, float)
_YEAR_US = 365 * 24 * 3_600 * 10**6
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]', re.DOTALL)
_USAGE = b'"usage"'
_BEFORE_OBJECT = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*{")


def parse(text: bytes) -> object:
    """Parse an upstream's JSON; None if it is none.

    orjson is strict. What Python's own writer may have put there (NaN, Infinity, half of a surrogate pair, a byte order
    mark, broken UTF-8) is read by its own reader, so that a report beside such a value is not lost.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        lenient = json.loads(text.decode("utf-8-sig", "replace"))
        clean = json.dumps(lenient, ensure_ascii=False).encode("utf-8", "replace")
        parsed: object = json.loads(clean, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return parsed


def has_usage(parsed: object) -> bool:
    """Tell whether an answer or chunk shows a usage object, whatever is in it."""
    return isinstance(parsed, dict) and isinstance(parsed.get("usage"), dict)


def usage_of(parsed: object) -> Usage | None:
    """Return the usage that a parsed answer or chunk reports, None where it reports none."""
    usage = parsed.get("usage") if isinstance(parsed, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not _is_count(prompt) or not _is_count(completion) or not (prompt or completion):
        return None
    details = _mapping(usage.get("prompt_tokens_details"))
    cached = details.get("cached_tokens")
    reasoning = _mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")
    if reasoning is None:
        reasoning = usage.get("reasoning_tokens")
    cached = _count(cached) if cached else 0
    reasoning = _count(reasoning) if reasoning else 0
    if "image_tokens" not in details and "audio_tokens" not in details:
        return Usage(prompt, completion, cached, reasoning)
    return Usage(prompt, completion, cached, reasoning, *media_of(details))


def media_of(details: dict[str, Any]) -> tuple[int, int]:
    """Return the tokens of images and of audio that the details of a prompt tell; what is no count is 0."""
    return _count(details.get("image_tokens")), _count(details.get("audio_tokens"))


def timings_of(parsed: object) -> Usage | None:
    """Return the usage that llama.cpp's `timings` hold (cache_n, prompt_n, predicted_n)."""
    timings = parsed.get("timings") if isinstance(parsed, dict) else None
    if not isinstance(timings, dict):
        return None
    computed, predicted, cached = timings.get("prompt_n"), timings.get("predicted_n"), _count(timings.get("cache_n"))
    if not _is_count(computed) or not _is_count(predicted) or not (computed or predicted):
        return None
    return Usage(computed + cached, predicted, cached)


def times_of(parsed: dict[str, Any]) -> Times | None:
    """Return the times that llama.cpp's `timings` hold: milliseconds with a fraction, kept to the microsecond."""
    timings = parsed.get("timings")
    if not isinstance(timings, dict):
        return None
    prompt: Any = timings.get("prompt_ms")
    generation: Any = timings.get("predicted_ms")
    if type(prompt) not in _NUMBERS or type(generation) not in _NUMBERS:
        return None
    return times(prompt * 1_000, generation * 1_000)


def times(prompt_us: Any, generation_us: Any) -> Times | None:
    """Return two numbers as times; None if one is negative, endless or absurd (a year), or if none was spent."""
    if 0 <= prompt_us < _YEAR_US and 0 <= generation_us < _YEAR_US and (prompt_us or generation_us):
        return Times(int(prompt_us), int(generation_us))
    return None


def progress_of(parsed: object) -> Usage | None:
    """Return the prompt that llama.cpp's `prompt_progress` tells, with its cached part and no output."""
    progress = _mapping(parsed.get("prompt_progress")) if isinstance(parsed, dict) else {}
    total = progress.get("total")
    return Usage(total, 0, _count(progress.get("cache"))) if _is_count(total) and total > 0 else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int  # and no bool


def _count(value: object) -> int:
    return value if _is_count(value) else 0


def with_cost(raw: bytes, cost: str, reported: dict[str, Any] | None) -> bytes:
    """Add `"cost": <number>` at the end of the top-level usage object in a JSON text, leaving all other bytes.

    `cost` is a JSON number's text, `reported` the usage object as it was parsed. Text where that object does not stand
    in one piece comes back as it is. Nearly always the key is there once, and found at once. If it is there again (in a
    string, in a nested object, twice) the text's tokens are walked; of several the last counts, as for parsers.
    """
    if reported is None:
        return raw
    end = _compact_end(raw, reported)
    if end is None:
        span = _usage_span(raw, reported)
        if span is None:
            return raw
        end = span[1]
    return raw[:end] + (b',"cost":' if reported else b'"cost":') + cost.encode() + raw[end:]


def without_usage(raw: bytes, reported: dict[str, Any]) -> bytes:
    """Take the top-level usage object out of a compact JSON text (as vLLM writes it); any other comes back as it is."""
    end = _compact_end(raw, reported)
    if end is None:
        return raw
    start = raw.rfind(_USAGE, 0, end)
    if raw[start - 1 : start] == b",":
        return raw[: start - 1] + raw[end + 1 :]
    return raw[:start] + raw[end + 1 :].removeprefix(b",")


def _compact_end(raw: bytes, reported: dict[str, Any]) -> int | None:
    """Return where the closing brace is, if the text is compact and has the key once: ten times as fast as a walk.

    The key can not be in a string, where its quotes would be escaped, nor nested, since the top level has it.
    """
    if raw.count(_USAGE) != 1:
        return None
    try:
        needle = _USAGE + b":" + orjson.dumps(reported)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits
        return None
    at = raw.find(needle)
    return at + len(needle) - 1 if at >= 0 else None


def _usage_span(raw: bytes, reported: dict[str, Any] | None) -> tuple[int, int] | None:
    """Return where the braces of the top-level usage object are, None if it is not there."""
    first = raw.find(_USAGE)
    is_only = raw.find(_USAGE, first + 1) < 0
    depth, opens_at, span = int(is_only), -1, None
    for match in _TOKEN.finditer(raw, first if is_only else 0) if first >= 0 else ():
        mark = match[0]
        if mark == b"{":
            depth += 1
        elif mark == b"}":
            depth -= 1
            if depth == 1 and opens_at >= 0:
                found, opens_at = (opens_at, match.start()), -1
                if parse(raw[found[0] : match.end()]) == reported:
                    span = found
                    if is_only:
                        break
        elif depth == 1 and mark == _USAGE and (brace := _BEFORE_OBJECT.match(raw, match.end())) is not None:
            opens_at = brace.end() - 1
    return span
