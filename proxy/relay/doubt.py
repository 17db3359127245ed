"""Whether a reported usage can be true (I11): a bound that costs nothing first, a count only where that is exceeded.

A token of text is at least a byte, and of ordinary text three or four. So what the request and its answer weigh says,
for two comparisons, which reports deserve a count; nearly all do not. What deserves one is tokenised off the event loop
before it is billed (`counting.py`), and `judge` compares. A false alarm of the bound costs a millisecond and nothing
else; an accusation needs the count.

    input above 4 × ours + 64      `input_implausible`, billed as we count it
    output above 2 × ours + 64     `output_mismatch`, billed as reported, or (`on_mismatch = "clamp"`) as counted
    less than ours                 never billed up

What the bound lets pass: the JSON around a text weighs, too. A stream of one token an event is counted when it is
reported at more than about three times its tokens, a whole answer at about twice. What can not be counted is not
judged: pictures, sound, embeddings as prompts, reasoning and searches that the server keeps to itself.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from billing.usage import Anomaly, Usage
from proxy.meter import endpoints
from proxy.relay.request import Ask, hides_reasoning

INPUT_FACTOR: Final = 4
OUTPUT_FACTOR: Final = 2
SLACK_TOKENS: Final = 64
"""What a template or an answer's markup may add that no one sees; below this nothing is worth a doubt."""

UNKNOWN_TEMPLATE_TOKENS: Final = 1024
"""The same where the template is not known, or the server has a system prompt of its own (Ollama, LM Studio)."""

RERANK_TEMPLATE_TOKENS: Final = 128
"""Around each pair of query and document: Qwen3's reranker has an instruction of some 70 tokens."""

TOOLS_BYTES: Final = 512
"""Qwen3.5's template says some 200 tokens about tools that no byte of the request stands for."""

STOP_TOKENS: Final = 16
"""A stop text is generated and not shown."""

_WHOLE_OVERHEAD_BYTES: Final = 256
_WHOLE_BYTES_PER_TOKEN: Final = 2
_STREAM_OVERHEAD_BYTES: Final = 512
_STREAM_BYTES_PER_TOKEN: Final = 64
_PROMPT_BYTES_PER_TOKEN: Final = 2

_OPAQUE_PROMPT: Final = ("prompt_embeds", "context", "audio", "mm_processor_kwargs")
_TEMPLATED: Final = (
    *("chat_template", "documents", "functions", "response_format", "json_schema", "grammar", "guided_json"),
    *("structured_outputs", "chat_template_kwargs", "format", "template", "suffix", "input_extra"),
)
"""Fields whose text a template may write into the prompt."""

_OPAQUE_OUTPUT: Final = ("prediction", "audio", "prompt_embeds", "use_beam_search")
_PLAIN_TOOLS: Final = (None, "function", "custom")


def doubts_input(reported: Usage, ask: Ask, body_bytes: int) -> bool:
    """Tell whether a reported prompt is worth a count: it is far above what the request's bytes are likely to hold."""
    tokens = reported.input_tokens
    if tokens <= SLACK_TOKENS or tokens * _PROMPT_BYTES_PER_TOKEN <= body_bytes:
        return False
    return not ask.body.get("tools") or tokens * _PROMPT_BYTES_PER_TOKEN > body_bytes + TOOLS_BYTES


def doubts_output(reported: Usage, answer_bytes: int, *, is_stream: bool) -> bool:
    """Tell the same of a reported output and the answer's bytes."""
    if reported.output_tokens <= SLACK_TOKENS:
        return False
    if is_stream:
        return reported.output_tokens * _STREAM_BYTES_PER_TOKEN > answer_bytes - _STREAM_OVERHEAD_BYTES
    return reported.output_tokens * _WHOLE_BYTES_PER_TOKEN > answer_bytes - _WHOLE_OVERHEAD_BYTES


class Counted(NamedTuple):
    """What we count of one exchange.

    `input_tokens` and `output_tokens` are None where only the server can know. `hidden_tokens` is output that is
    certainly or plausibly generated and never shown. `output_tokens_max` is what the request allows: a report above it
    is cut to it (`billing.usage.provable`), and only what is left has to be plausible.
    """

    input_tokens: int | None
    output_tokens: int | None
    input_slack: int = SLACK_TOKENS
    hidden_tokens: int = 0
    output_tokens_max: int | None = None


def exceeds_input(reported: Usage, counted: Counted) -> bool:
    """Tell whether the prompt is reported too large to be true."""
    ours = counted.input_tokens
    return ours is not None and reported.input_tokens > INPUT_FACTOR * ours + counted.input_slack


def exceeds_output(reported: Usage, counted: Counted) -> bool:
    """Tell whether the output is reported too large to be true."""
    ours, allowed = counted.output_tokens, counted.output_tokens_max
    possible = reported.output_tokens if allowed is None else min(reported.output_tokens, allowed)
    return ours is not None and possible > OUTPUT_FACTOR * (ours + counted.hidden_tokens) + SLACK_TOKENS


def judge(reported: Usage, counted: Counted, *, clamps_output: bool) -> tuple[Usage, tuple[Anomaly, ...]]:
    """Return what is billed of a report, and what is wrong with it.

    A cached part above the reported prompt is left for `billing.usage.provable`, which names it. A prompt that we can
    count is text: it has no part that is images or audio.
    """
    usage, anomalies = reported, []
    if exceeds_input(reported, counted):
        assert counted.input_tokens is not None, "it is exceeded"
        cached = reported.cached_input_tokens
        kept = min(cached, counted.input_tokens) if cached <= reported.input_tokens else cached
        usage = usage._replace(
            input_tokens=counted.input_tokens,
            cached_input_tokens=kept,
            image_input_tokens=0,
            audio_input_tokens=0,
        )
        anomalies.append(Anomaly.INPUT_IMPLAUSIBLE)
    if exceeds_output(reported, counted):
        anomalies.append(Anomaly.OUTPUT_MISMATCH)
        if clamps_output:
            assert counted.output_tokens is not None, "it is exceeded"
            reasoning = reported.reasoning_tokens
            kept = min(reasoning, counted.output_tokens) if reasoning <= reported.output_tokens else reasoning
            usage = usage._replace(output_tokens=counted.output_tokens, reasoning_tokens=kept)
    return usage, tuple(anomalies)


def has_opaque_prompt(ask: Ask) -> bool:
    """Tell whether a prompt holds what only the server can count; pictures are for `billing.tokens.media_parts`."""
    return any(ask.body.get(name) is not None for name in _OPAQUE_PROMPT) or not _has_plain_tools(ask.body)


def has_templated_fields(ask: Ask) -> bool:
    """Tell whether more of the body than its conversation may stand in the prompt."""
    if ask.endpoint == endpoints.RESPONSES:  # items of many kinds
        return True
    return any(ask.body.get(name) is not None for name in _TEMPLATED)


def has_opaque_output(ask: Ask) -> bool:
    """Tell whether tokens are generated for this request that its answer does not show."""
    body = ask.body
    if any(body.get(name) is not None for name in _OPAQUE_OUTPUT) or not _has_plain_tools(body):
        return True
    reasoning, modalities = body.get("reasoning"), body.get("modalities")
    best_of = body.get("best_of")
    return (
        hides_reasoning(body)
        or (isinstance(reasoning, dict) and reasoning.get("exclude") is True)
        or body.get("echo") is True
        or (isinstance(best_of, int) and best_of > ask.outputs.n)
        or (isinstance(modalities, list) and modalities != ["text"])
    )


def template_slack(ask: Ask, kind: str, *, is_known: bool) -> int:
    """Return how many tokens of a prompt may come from elsewhere than the request.

    `is_known`: vocabulary and chat template are known to be the model's own.
    """
    if ask.endpoint == endpoints.RERANK:
        documents = ask.body.get("documents", ask.body.get("texts"))
        return SLACK_TOKENS + RERANK_TEMPLATE_TOKENS * (len(documents) if isinstance(documents, list) else 1)
    return UNKNOWN_TEMPLATE_TOKENS if not is_known or kind in ("ollama", "lmstudio") else SLACK_TOKENS


def hidden_output(ask: Ask, reported: Usage, *, reasoning_seen: int, tool_tokens: int) -> int:
    """Return how much output may have been generated beside what is seen and counted.

    Reasoning that the server says it kept to itself; markup of tool calls, at most some twice the names and arguments
    that are shown (a parameter of one letter: 5 tokens of JSON, 12 of markup); and a stop text for each output.
    """
    kept_to_itself = max(0, reported.reasoning_tokens - reasoning_seen)
    stops = STOP_TOKENS * ask.outputs.total if ask.has_stop_texts else 0
    return kept_to_itself + 2 * tool_tokens + stops


def _has_plain_tools(body: dict[str, Any]) -> bool:
    """Tell whether all tools are the client's own: those of a server add prompts and output that nobody sees."""
    tools: object = body.get("tools")
    listed: Iterable[object] = tools if isinstance(tools, list) else ()
    return all(not isinstance(tool, dict) or tool.get("type") in _PLAIN_TOOLS for tool in listed)
