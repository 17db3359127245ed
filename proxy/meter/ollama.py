"""The meter of Ollama's native endpoints: `/api/chat` and `/api/generate`, streamed and not, and `/api/embed`.

A stream is newline-delimited JSON; the line with `done: true` is the terminal one, held, and reports:

    `prompt_eval_count`, the whole prompt               with its cached part (pull request 16428 of ollama)
    `prompt_eval_cached_count`, a part of it            since 2026-08 (pull request 17943)
    `eval_count`, the output, reasoning included        left out where it is 0
    no `prompt_eval_count`                              older versions, when the prefix was cached (issue 2068): the
                                                        prompt is counted, the output billed as told
    `prompt_eval_duration`, `eval_duration`             nanoseconds: how its time divides between the two
    `done_reason` "load" or "unload"                    an empty prompt: nothing was read or generated
    an `error` line inside a 200                        outcome upstream_error

Nothing is added to a line. The protocol has no usage object in which `cost` would have a place of its own, and typed
clients refuse or drop unknown fields; an answer that is not streamed has `x-weir-amount`, any has its receipt at
`/v1/requests/{id}`.
"""

from collections.abc import Iterable
from typing import Any, Final

from billing.tokens.counting import OutputTally, Piece, pieces
from proxy.meter.embeddings import skeleton
from proxy.meter.flow import Flow
from proxy.meter.reading import times
from proxy.meter.steps import Settle, Times
from proxy.meter.told import IDLE, Told, count, mapping, parsed_object, proven, string

_IDLE_REASONS: Final = frozenset({"load", "unload"})


def told_of(line: dict[str, Any]) -> Told | None:
    """Return what the last line of an answer reports, None for any other line."""
    if line.get("done") is not True:
        return None
    if string(line.get("done_reason")) in _IDLE_REASONS:
        return IDLE
    return Told(
        input_tokens=count(line.get("prompt_eval_count")),
        output_tokens=count(line.get("eval_count")) or 0,
        cached_input_tokens=count(line.get("prompt_eval_cached_count")) or 0,
    )


def times_of(line: dict[str, Any]) -> Times | None:
    """Return the times of the last line, which are in nanoseconds; a prompt that was cached whole has none."""
    prompt, generation = count(line.get("prompt_eval_duration")) or 0, count(line.get("eval_duration")) or 0
    return times(prompt // 1_000, generation // 1_000)


class OllamaMeter(Flow):
    """Bytes of a stream of lines in, the same bytes out, the usage at the end."""

    __slots__ = ()

    def __init__(self, *, has_stop_texts: bool = False) -> None:
        """`has_stop_texts`: the request has `options.stop`."""
        super().__init__(cost_of=None, has_stop_texts=has_stop_texts, is_lines=True)

    def _matters(self, data: bytes) -> bool:
        """Tell whether something is said to be done, or failed; Go writes `:false`, Python `: false`."""
        if b'"error"' in data:
            return True
        mentions = data.count(b'"done"')
        return bool(mentions) and mentions != data.count(b'"done":false') + data.count(b'"done": false')

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:  # noqa: ARG002 -- all is parsed
        self._told = told_of(parsed)
        self.is_complete = self._told is not None
        self._times = times_of(parsed)
        return None

    def _pieces(self, parsed: dict[str, Any], event: bytes) -> Iterable[Piece]:  # noqa: ARG002 -- all is parsed
        return _pieces(parsed)


def settle(body: bytes) -> Settle:
    """Read the usage of an answer that is not streamed; lines that were not asked for are read as a stream."""
    answer = parsed_object(body)
    if answer is None:
        return _of_lines(body).finish()._replace(raw=body)
    return Settle(proven(told_of(answer), _text(answer)), body, bool(answer.get("error")), times=times_of(answer))


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return what an answer that came without usage contains, to be counted."""
    answer = parsed_object(body)
    if answer is None:
        lines = _of_lines(body, has_stop_texts=has_stop_texts)
        lines.finish()
        return lines.delivered()
    text, told = _text(answer, has_stop_texts=has_stop_texts), told_of(answer)
    return told.over(text) if told is not None else text


def settle_embeddings(body: bytes) -> Settle:
    """Read the usage of `/api/embed`: the prompt alone, without parsing the numbers."""
    answer = skeleton(body)
    if answer is None or not answer.get("prompt_eval_count"):
        answer = parsed_object(body) or {}
    told = Told(count(answer.get("prompt_eval_count")), 0)
    return Settle(told.usage, body, bool(answer.get("error")))


def _of_lines(body: bytes, *, has_stop_texts: bool = False) -> OllamaMeter:
    meter = OllamaMeter(has_stop_texts=has_stop_texts)
    meter.receive(body)
    return meter


def _text(answer: dict[str, Any], *, has_stop_texts: bool = False) -> OutputTally:
    tally = OutputTally(has_stop_texts=has_stop_texts)
    for piece in _pieces(answer):
        tally.take(piece)
    return tally


def _pieces(line: dict[str, Any]) -> list[Piece]:
    """Return what a line brings, read as the chunk of an OpenAI chat that it nearly is."""
    message = mapping(line.get("message"))
    delta = {
        "content": string(message.get("content")) + string(line.get("response")),
        "reasoning": string(message.get("thinking")) + string(line.get("thinking")),
        "tool_calls": message.get("tool_calls"),
    }
    return pieces({"choices": [{"index": 0, "delta": delta, "finish_reason": line.get("done_reason")}]})
