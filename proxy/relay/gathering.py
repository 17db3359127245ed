"""Which answers that are not streamed are asked of llama.cpp as a stream, for Weir to put together (`meter/gathered*`).

All that come out byte for byte as llama.cpp would have written them. Its whole answers can not be stopped: it looks for
its client only after a second in which no request had a result, so on a busy server the generation of a client that
left runs to its end (measured on b11549 with one other stream: 1,500 of 1,500 tokens for each path; streams stopped
within 30 ms). And of several outputs it reports the usage of the first one only.

Measured equal, but for ids, times and what was found in the cache: plain and cut answers, stops, reasoning in each
format, tool calls, JSON, token ids, echo, samplers, errors before the first token. Not equal, and so asked for whole
where there is one output: log probabilities (a stream leaves out that of the end of sequence) and `verbose` (a stream
has no `__verbose`) of chats and completions, the other paths show neither; and an answer that continues the client's
own last message (a stream does not repeat it), but on `/v1/responses`, where it is equal.

Not to be told beforehand, both read in source only: a whole `/v1/messages` of which nothing could be parsed (a limit
cut a call before its name was out) has the raw text; its stream, and so what Weir puts together, has no content. And in
the arguments of its calls llama.cpp rounds integers of more than 64 bits and writes a fraction of 16 digits before its
point with an exponent: Weir's have the same value.
"""

from typing import Any, Final

from proxy.meter import endpoints

_GATHERED: Final = endpoints.OPENAI_COMPLETIONS | {endpoints.RESPONSES, endpoints.MESSAGES}
_SHOWN_IN_WHOLE_ANSWERS: Final = ("logprobs", "top_logprobs", "n_probs", "verbose")


def is_same_as_stream(endpoint: str, body: dict[str, Any]) -> bool:
    """Tell whether the answer to this request can be put together from llama.cpp's stream of it."""
    if endpoint not in _GATHERED:
        return False
    if endpoint in endpoints.OPENAI_COMPLETIONS and any(body.get(name) for name in _SHOWN_IN_WHOLE_ANSWERS):
        return False
    messages = body.get("messages") if endpoint != endpoints.RESPONSES else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    return not isinstance(last, dict) or last.get("role") != "assistant"
