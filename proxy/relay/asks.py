"""The request's body on every metered path: read, refused where it would fool the meter, edited, serialised again.

`request` has chat and text completions and what is common to all; here is what the other protocols have of their own.
Usage is always visible in them, so none has to be asked for. The documented changes, beside `model`:

`/v1/responses`, `store` becomes false. SGLang keeps every conversation unless told so, vLLM does where that is switched
on; Weir promises that none is kept (I10), and none of its paths could read or delete it. For the same reason
`previous_response_id` and `conversation` are refused: they would continue a conversation that may be another
customer's, and whose length no one can see in the request. So is `background`: the answer would come before the tokens
(SGLang, vLLM), and they would be free.

To llama.cpp what is not streamed on `/v1/responses` and `/v1/messages` gets `stream: true` (`gathering`).

`/api`, `keep_alive` is dropped: it loads and unloads models on the operator's server, for all customers.

What is refused everywhere: a field that differs from one that Weir reads in nothing but its case. Go's JSON reader,
and so Ollama, takes `Model` for `model`, the last one wins: one model would be priced and another one answer.

On `/v1/responses` and `/v1/messages` several outputs are refused. The protocols have none, but llama.cpp makes them
(`n: 2` on `/v1/responses` generates two answers, measured) and reports each as if it were the only one.
"""

from typing import Any

import orjson

from proxy.meter import endpoints
from proxy.meter.steps import Outputs
from proxy.relay import request
from proxy.relay.gathering import is_same_as_stream
from proxy.relay.refusals import Refusal
from proxy.relay.request import Ask, Forwarded

PROMPT_COUNTERS = {
    endpoints.CHAT: "/v1/chat/completions/input_tokens",
    endpoints.RESPONSES: "/v1/responses/input_tokens",
    endpoints.MESSAGES: endpoints.COUNT_TOKENS,
}
"""Where llama.cpp (all three, measured) and vLLM (the last, measured) count a prompt: POST of the same body, answered
by `{"input_tokens": n}`."""

OUTPUT_FIELDS = ("n", "n_cmpl", "best_of")
LIMIT_FIELDS = ("max_output_tokens", "max_tokens", "max_completion_tokens", "n_predict")
_STATE_FIELDS = ("previous_response_id", "conversation")
_READ_FIELDS = frozenset(
    {"model", "stream", "stream_options", "options", "keep_alive", "store", "background", "stop", "stop_sequences"}
    | {"messages", "prompt", "input", "system", "instructions", "tools", "query", "documents", "texts", "raw", "images"}
    | {*OUTPUT_FIELDS, *LIMIT_FIELDS, *_STATE_FIELDS}
)
_PLAIN_FIELDS = _READ_FIELDS | {
    *("temperature", "top_p", "top_k", "min_p", "seed", "user", "presence_penalty", "frequency_penalty", "metadata"),
    *("tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "reasoning_effort"),
}
"""Names in lower case, which need no look at their spelling: what most requests consist of."""


def read(endpoint: str, raw: bytes) -> Ask | Refusal:
    """Parse and check the fields that Weir reads; whatever else is there is the upstream's to judge."""
    ask = request.read(endpoint, raw)
    if isinstance(ask, Refusal):
        return ask
    refusal = _check_spelling(ask.body)
    if refusal is not None or endpoint in endpoints.OPENAI_COMPLETIONS:
        return refusal or ask
    refusal = _check_single(endpoint, ask.body) or _check_state(endpoint, ask.body) or _check_limits(ask.body)
    if refusal is not None:
        return refusal
    stream = ask.body.get("stream")
    streams = stream is not False if endpoint in endpoints.OLLAMA else bool(stream)
    return ask._replace(
        streams=streams and endpoint not in endpoints.PROMPT_ONLY,
        wants_usage=True,
        outputs=Outputs(),
        output_tokens_max=_output_limit(endpoint, ask.body),
        has_stop_texts=any(part.get(name) for part in _with_options(ask.body) for name in ("stop", "stop_sequences")),
    )


def forward(ask: Ask, upstream_model: str, *, reports_each_output: bool, is_vllm: bool = False) -> Forwarded:
    """Serialise the body for one upstream; see the module's docstring for what is changed."""
    if ask.endpoint in endpoints.OPENAI_COMPLETIONS:
        return request.forward(ask, upstream_model, reports_each_output=reports_each_output, is_vllm=is_vllm)
    body = {**ask.body, "model": upstream_model}
    if ask.endpoint == endpoints.RESPONSES:
        body["store"] = False
    if ask.endpoint in endpoints.OLLAMA:
        body.pop("keep_alive", None)
    gathers = reports_each_output and not ask.streams and is_same_as_stream(ask.endpoint, ask.body)
    if gathers:
        body["stream"] = True
        body.pop("stream_options", None)  # it says nothing of a whole answer, and may be of a wrong type
    return Forwarded(orjson.dumps(body), hides_usage=False, gathers=gathers)


def _check_spelling(body: dict[str, Any]) -> Refusal | None:
    """Refuse a name that a reader blind to case takes for one that Weir reads; Go's folds `ſ` and `K` (kelvin), too."""
    if body.keys() <= _PLAIN_FIELDS:
        return None
    for name in body:
        folded = name.casefold()
        if name != folded and folded in _READ_FIELDS:
            return Refusal("invalid_request", f"`{name}` must be written `{folded}`: some servers read both", name)
    return None


def _check_single(endpoint: str, body: dict[str, Any]) -> Refusal | None:
    for name in OUTPUT_FIELDS if endpoint in (endpoints.RESPONSES, endpoints.MESSAGES) else ():
        if body.get(name) not in (None, 1):
            return Refusal("invalid_request", f"`{name}` must be 1: this endpoint gives one output", name)
    return None


def _check_state(endpoint: str, body: dict[str, Any]) -> Refusal | None:
    if endpoint != endpoints.RESPONSES:
        return None
    if body.get("background") not in (None, False):
        return Refusal("invalid_request", "`background` must be false: answers are not kept for later", "background")
    for name in _STATE_FIELDS:
        if body.get(name) is not None:
            return Refusal("invalid_request", f"`{name}` is not supported: no conversation is kept here", name)
    return None


def _check_limits(body: dict[str, Any]) -> Refusal | None:
    for part in _with_options(body):
        for name in (*LIMIT_FIELDS, "num_predict"):
            if part.get(name) is not None and not _is_integer(part[name]):
                return Refusal("invalid_request", f"`{name}` must be an integer", name)
    return None


def _output_limit(endpoint: str, body: dict[str, Any]) -> int | None:
    """Return the most tokens that the request allows, None if nothing says it for certain.

    Of several fields the largest counts: llama.cpp obeys `n_predict` before the protocol's own (measured). What is not
    positive means no limit on one server and one token on another.
    """
    if endpoint in endpoints.PROMPT_ONLY:
        return 0
    names = ("num_predict",) if endpoint in endpoints.OLLAMA else LIMIT_FIELDS
    part = _options(body) if endpoint in endpoints.OLLAMA else body
    limits = [part[name] for name in names if part.get(name) is not None]
    return max(limits) if limits and min(limits) > 0 else None


def _with_options(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return body, _options(body)


def _options(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("options")
    return options if isinstance(options, dict) else {}


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
