"""The request's body: parsed once, read, edited where documented, and serialised again.

Invariant I8: what is admitted is what is forwarded. The upstream never sees the client's bytes but the text of the
value that Weir decided on, so that a duplicate key, an odd charset or a number out of range can not mean one thing
here and another there. The documented changes: `model` becomes the upstream's name; a stream's
`stream_options.include_usage` becomes true, and `continuous_usage_stats` goes if the client did not ask for usage
(vLLM ignores it then, and would show usage on every chunk otherwise), but becomes true, and stays hidden, in a chat of
vLLM with `include_reasoning: false` (it sends no event for reasoning then, so that a text that is cut could not be
counted; each event after it tells all tokens so far; read in the source of 0.32); an answer that is not streamed is
asked of llama.cpp as a stream (`gathering`).

What limits the bill is read strictly, because servers read it loosely. Measured on llama.cpp b11549: `n_predict` goes
before `max_completion_tokens` before `max_tokens`, 20.7 is 20, `true` is 1, -1 is no limit; `n_cmpl` goes before `n`,
which other servers know alone. So a limit that is no integer is refused, as are an `n` and an `n_cmpl` that differ; of
several limits the largest is believed, for servers differ in which they obey; a negative one is none; and one that the
server at hand does not know is none either (`Ask.limit_on`).
"""

from typing import Any, NamedTuple

import orjson

from proxy.meter.steps import Outputs
from proxy.relay.gathering import is_same_as_stream
from proxy.relay.refusals import Refusal

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENDPOINTS = frozenset({CHAT, COMPLETIONS})

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "n_predict")
OUTPUT_FIELDS = ("n", "n_cmpl", "best_of")
_COUNT_FIELDS = frozenset(OUTPUT_FIELDS)
_OUTPUTS_MAX = 1024
_ONE = Outputs()
_NONE: dict[str, Any] = {}
_DEPTH_MAX = 254


class Ask(NamedTuple):
    """What Weir has to know of a request's body; `body` is the parsed object itself.

    `output_tokens_max` is what its limits add up to, None if there are none; `limit_on` tells if a server obeys them.
    """

    endpoint: str
    body: dict[str, Any]
    model: str
    streams: bool
    wants_usage: bool
    outputs: Outputs
    output_tokens_max: int | None
    has_stop_texts: bool = False

    def limit_on(self, kind: str) -> int | None:
        """Return the most tokens that a server of this kind may generate for it, None if nothing says so for certain.

        A report is clamped to this, so it must not be less than what an honest server generates. `n_predict` is
        llama.cpp's own; `max_completion_tokens` is known to vLLM and SGLang in chats alone, where they take 0 for
        none (read in source: `max_completion_tokens or max_tokens`); of other servers `max_tokens` is all that is sure.
        """
        limit = self.output_tokens_max
        if limit is None or kind == "llamacpp" or self.endpoint not in ENDPOINTS:
            return limit
        if (self.body.get("max_tokens") or 0) > 0:
            return limit
        is_modern = kind in ("vllm", "sglang") and self.endpoint == CHAT
        return limit if is_modern and (self.body.get("max_completion_tokens") or 0) > 0 else None


def read(endpoint: str, raw: bytes) -> Ask | Refusal:
    """Parse and check the fields that Weir reads; whatever else is there is the upstream's to judge."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return Refusal("invalid_json", f"the body is not valid JSON in UTF-8: {error}")
    if not isinstance(body, dict):
        return Refusal("invalid_request", "the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return Refusal("invalid_request", "`model` must be a non-empty string", "model")
    refusal = _check_limits(body)
    if refusal is None and not _COUNT_FIELDS.isdisjoint(body):
        refusal = _check_counts(body)
    streams = body.get("stream")
    if refusal is None and streams is not None:
        refusal = _check_stream(streams, body.get("stream_options"))
    if refusal is not None:
        return refusal
    if _is_too_deep(raw, body):
        return Refusal("invalid_request", f"the body is nested deeper than {_DEPTH_MAX} levels")
    outputs = _outputs(endpoint, body)
    return Ask(
        endpoint,
        body,
        model,
        bool(streams),
        not streams or bool((body.get("stream_options") or _NONE).get("include_usage")),
        outputs,
        _output_limit(body, outputs),
        bool(body.get("stop")),
    )


def _check_stream(streams: object, options: object) -> Refusal | None:
    if not isinstance(streams, bool):
        return Refusal("invalid_request", "`stream` must be true or false", "stream")
    if not streams or options is None:
        return None
    if not isinstance(options, dict):
        return Refusal("invalid_request", "`stream_options` must be an object", "stream_options")
    includes = options.get("include_usage")
    if includes is not None and not isinstance(includes, bool):
        return Refusal("invalid_request", "`stream_options.include_usage` must be true or false", "stream_options")
    return None


def _check_counts(body: dict[str, Any]) -> Refusal | None:
    for field in OUTPUT_FIELDS:
        value = body.get(field)
        if value is not None and not (_is_integer(value) and 1 <= value <= _OUTPUTS_MAX):
            return Refusal("invalid_request", f"`{field}` must be an integer from 1 to {_OUTPUTS_MAX}", field)
    if body.get("n") and body.get("n_cmpl") and body["n"] != body["n_cmpl"]:
        return Refusal("invalid_request", "`n` and `n_cmpl` name the same number and must not differ", "n_cmpl")
    return None


def _check_limits(body: dict[str, Any]) -> Refusal | None:
    for field in LIMIT_FIELDS:
        if field in body and body[field] is not None and not _is_integer(body[field]):
            return Refusal("invalid_request", f"`{field}` must be an integer", field)
    return None


def _is_too_deep(raw: bytes, body: dict[str, Any]) -> bool:
    """Tell whether a body that could be parsed can not be serialised: orjson reads 1,024 levels and writes 254."""
    if raw.count(b"{") + raw.count(b"[") <= _DEPTH_MAX:
        return False
    try:
        orjson.dumps(body)
    except TypeError:
        return True
    return False


def _outputs(endpoint: str, body: dict[str, Any]) -> Outputs:
    """Return what is asked for; a list with token ids in it is one prompt (llama.cpp takes texts among them)."""
    prompt = body.get("prompt") if endpoint == COMPLETIONS else None
    prompts = 1
    if isinstance(prompt, list) and not any(_is_integer(part) for part in prompt):
        prompts = len(prompt) or 1
    elif _COUNT_FIELDS.isdisjoint(body):
        return _ONE
    return Outputs(prompts, body.get("n_cmpl") or body.get("n") or 1)


def _output_limit(body: dict[str, Any], outputs: Outputs) -> int | None:
    """Return what the limits add up to; llama.cpp generates one token even where 0 are allowed (measured).

    With `prompt_embeds` (vLLM) it can not be told how many prompts there are.
    """
    limit: int | None = None
    for field in LIMIT_FIELDS:
        given: int | None = body.get(field)
        if given is not None:
            if given < 0:
                return None
            limit = max(1, given) if limit is None else max(limit, given)
    if limit is None or body.get("prompt_embeds") is not None:
        return None
    if _COUNT_FIELDS.isdisjoint(body):
        return limit * outputs.prompts
    candidates: list[int] = [body.get(field) or 1 for field in OUTPUT_FIELDS]
    return limit * outputs.prompts * max(candidates)


def hides_reasoning(body: dict[str, Any]) -> bool:
    """Tell whether a server of vLLM's kind keeps reasoning to itself; it takes 0 and "no" for false, too."""
    return body.get("include_reasoning", True) not in (True, None)


def _is_integer(value: object) -> bool:
    return type(value) is int  # and no bool


class Forwarded(NamedTuple):
    """The upstream's body, and whether its answer is a stream that Weir gathers or whose usage it hides.

    `hides_running`: the usage on its chunks, too, which Weir asked for.
    """

    raw: bytes
    hides_usage: bool
    gathers: bool
    hides_running: bool = False


def forward(ask: Ask, upstream_model: str, *, reports_each_output: bool, is_vllm: bool = False) -> Forwarded:
    """Serialise the body for one upstream. `reports_each_output`: it is llama.cpp (see the module's docstring)."""
    body = {**ask.body, "model": upstream_model}
    gathers = hides_running = False
    if reports_each_output and not ask.streams:
        gathers = ask.outputs.total > 1 or is_same_as_stream(ask.endpoint, ask.body)
    if gathers:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    elif ask.streams:
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        if not ask.wants_usage:
            options.pop("continuous_usage_stats", None)
        if is_vllm and ask.endpoint == CHAT and hides_reasoning(body) and not options.get("continuous_usage_stats"):
            hides_running = options["continuous_usage_stats"] = True
        body["stream_options"] = options
    return Forwarded(orjson.dumps(body), not ask.wants_usage, gathers, hides_running)
