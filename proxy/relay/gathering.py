"""Which answers that are not streamed are asked of llama.cpp as a stream, for Weir to put together (`meter/gathered*`).

All that come out byte for byte as llama.cpp would have written them. Its whole answers can not be stopped: it looks for
its client only after a second in which no request had a result, so on a busy server the generation of a client that
left runs to its end (measured on b11549 with one other stream: 1,500 of 1,500 tokens for each path; streams stopped
within 30 ms). And of several outputs it reports the usage of the first one only.

Measured equal, but for ids and times: plain and cut answers, stops, reasoning in each format, tool calls, JSON, token
ids, echo, samplers, errors before the first token. Not equal, and so asked for whole where there is one output: log
probabilities (a stream leaves out that of the end of sequence) and `verbose` (a stream has no `__verbose`), which only
chats and completions show, and an answer that continues the client's own last message (a stream does not repeat it).

What can not be told beforehand: llama.cpp puts the raw text into a whole `/v1/messages` whose parsed answer is empty (a
limit cut the first call before its name was out), where its stream, and so Weir, has no content (read in source).
"""

from typing import Any, Final

from proxy.meter import endpoints

_SHOWN_IN_WHOLE_ANSWERS: Final = ("logprobs", "top_logprobs", "n_probs", "verbose")
_CONVERSATIONS: Final = {endpoints.CHAT: "messages", endpoints.MESSAGES: "messages", endpoints.RESPONSES: "input"}
_TURNS_OF_THE_MODEL: Final = frozenset({"reasoning", "function_call"})
"""Items of `/v1/responses` that are the model's own, though they have no role."""


def is_same_as_stream(endpoint: str, body: dict[str, Any]) -> bool:
    """Tell whether the answer to this request can be put together from llama.cpp's stream of it."""
    if endpoint in endpoints.OPENAI_COMPLETIONS:
        if any(body.get(name) for name in _SHOWN_IN_WHOLE_ANSWERS):
            return False
    elif endpoint not in _CONVERSATIONS:
        return False
    turns = body.get(_CONVERSATIONS.get(endpoint, "messages"))
    last = turns[-1] if isinstance(turns, list) and turns else None
    return not isinstance(last, dict) or not (
        last.get("role") == "assistant" or (endpoint == endpoints.RESPONSES and last.get("type") in _TURNS_OF_THE_MODEL)
    )
