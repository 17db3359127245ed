"""The meter of `/v1/embeddings` and `/v1/rerank`: a prompt and no output, never streamed.

    `prompt_tokens` and `total_tokens`, summed over the inputs    llama.cpp (measured), vLLM
    `total_tokens` alone                                          rerankers of Jina's shape
    no usage: a bare array                                        llama.cpp, rerank asked with `texts`
    a prompt of 0                                                 LM Studio: counted

An answer is long (a thousand inputs are ten megabytes of numbers) and says little, so its arrays are left out before
it is parsed: `skeleton`.
"""

from typing import Any

from billing.tokens.counting import OutputTally
from proxy.meter.reading import media_of
from proxy.meter.steps import Settle
from proxy.meter.told import Told, count, mapping, parsed_object


def skeleton(body: bytes) -> dict[str, Any] | None:
    """Parse an object without what lies between its first `[` and its last `]`.

    None where that leaves no valid JSON, as with a bracket inside a text. Whatever it holds stands in the body as it
    is; it may lack something, and who misses that has to parse the whole.
    """
    start, end = body.find(b"["), body.rfind(b"]")
    return parsed_object(b"%b[]%b" % (body[:start], body[end + 1 :])) if 0 <= start < end else None


def told_of(answer: dict[str, Any] | None) -> Told | None:
    """Return what an answer reports."""
    usage = mapping((answer or {}).get("usage"))
    prompt = count(usage.get("prompt_tokens"))
    image, audio = media_of(mapping(usage.get("prompt_tokens_details")))
    told = Told(
        input_tokens=count(usage.get("total_tokens")) if prompt is None else prompt,
        output_tokens=0,
        image_input_tokens=image,
        audio_input_tokens=audio,
    )
    return told if told.usage is not None else None


def settle(body: bytes) -> Settle:
    """Read the usage of an answer; what is no JSON object (bytes of floats, a bare array) has none."""
    answer = skeleton(body)
    if told_of(answer) is None:
        answer = parsed_object(body)
    if answer is None:
        return Settle(None, body)
    told, reported = told_of(answer), answer.get("usage")
    usage = told.usage if told is not None else None
    return Settle(usage, body, bool(answer.get("error")), reported if isinstance(reported, dict) else None)


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:  # noqa: ARG001 -- as those of the others
    """Return nothing: no token was generated, only the prompt is to be counted."""
    return OutputTally()
