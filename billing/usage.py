"""What a request used, in tokens, and the event that records it.

One convention, whatever the upstream's: `input_tokens` is the whole prompt and `cached_input_tokens` a part
of it; `output_tokens` is all that was generated and `reasoning_tokens` a part of it. A part is never above its
whole: `provable` makes sure, and names what was wrong.

`image_input_tokens` and `audio_input_tokens` are parts of the prompt, too: those that did not come from the cache. A
cached token is billed as cached, whatever it stands for; so the three parts never overlap, and what is left of the
prompt is text. Upstreams count pictures and sound cached or not, and never say which of them were: of such a report
pictures have at most the uncached part of the prompt, and sound what they leave of it.
"""

from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """How a request ended; only these are recorded (a refused request leaves no event)."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    UPSTREAM_ERROR = "upstream_error"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"
    ADJUSTMENT = "adjustment"


class CountSource(StrEnum):
    """Who counted the tokens: the model server, or we on the model's own vocabulary."""

    UPSTREAM = "upstream"
    COUNTED = "counted"


class Anomaly(StrEnum):
    """What could not be true in the usage that an upstream reported."""

    NEGATIVE = "negative"
    CACHED_EXCEEDS_INPUT = "cached_exceeds_input"
    MEDIA_EXCEEDS_INPUT = "media_exceeds_input"
    REASONING_EXCEEDS_OUTPUT = "reasoning_exceeds_output"
    OUTPUT_EXCEEDS_LIMIT = "output_exceeds_limit"
    INPUT_IMPLAUSIBLE = "input_implausible"
    OUTPUT_MISMATCH = "output_mismatch"
    UNCOVERED = "uncovered"
    RESUMED = "resumed"


class Usage(NamedTuple):
    """Token counts of one response; parts are included in their wholes."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    image_input_tokens: int = 0
    audio_input_tokens: int = 0


def provable(reported: Usage, output_tokens_max: int | None) -> tuple[Usage, tuple[Anomaly, ...]]:
    """Clamp what can not be true to its provable part, and name each clamp.

    Negative becomes 0, a part becomes at most its whole, output becomes at most what was allowed
    (`output_tokens_max`, the request's max tokens × n; None if the request set no limit). Pictures and sound that
    were cached are billed as that, which is nothing wrong; together above the whole prompt they are.
    """
    input_tokens, output_tokens, cached, reasoning, image, audio = reported
    is_within = output_tokens_max is None or output_tokens <= output_tokens_max
    if 0 <= cached <= input_tokens and 0 <= reasoning <= output_tokens and is_within and not (image or audio):
        return reported, ()
    input_tokens, output_tokens, cached, reasoning, image, audio = (max(0, count) for count in reported)
    anomalies: list[Anomaly] = []
    if min(reported) < 0:
        anomalies.append(Anomaly.NEGATIVE)
    if cached > input_tokens:
        cached = input_tokens
        anomalies.append(Anomaly.CACHED_EXCEEDS_INPUT)
    if image + audio > input_tokens:
        anomalies.append(Anomaly.MEDIA_EXCEEDS_INPUT)
    image, audio = uncached_media(input_tokens, cached, image, audio)
    if reasoning > output_tokens:
        reasoning = output_tokens
        anomalies.append(Anomaly.REASONING_EXCEEDS_OUTPUT)
    if output_tokens_max is not None and output_tokens > output_tokens_max:
        output_tokens = output_tokens_max
        reasoning = min(reasoning, output_tokens)
        anomalies.append(Anomaly.OUTPUT_EXCEEDS_LIMIT)
    return Usage(input_tokens, output_tokens, cached, reasoning, image, audio), tuple(anomalies)


def uncached_media(input_tokens: int, cached: int, image: int, audio: int) -> tuple[int, int]:
    """Return how many tokens of pictures and of sound the uncached part of a prompt has room for, pictures first."""
    image = min(image, input_tokens - cached)
    return image, min(audio, input_tokens - cached - image)


class UsageEvent(NamedTuple):
    """One row of `usage_events`, in the order of its columns (but for the ledger's own), so that it is bound as it is.

    Instants are microseconds since 1970 UTC, amounts picounits. `price_ref` names the quote (unit prices, cost
    rate and margin rule) that priced it. `window_start` is the billing window that it counts in. `prompt_us` and
    `generation_us` are its fair share of its upstream's busy time (`proxy/relay/busy.py`).
    """

    id: str
    customer_id: str
    api_key_id: str
    model: str
    upstream: str
    upstream_model: str
    endpoint: str
    started_at: int
    first_token_at: int | None
    finished_at: int
    outcome: str
    http_status: int
    count_source: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_pico: int
    amount_pico: int
    price_ref: str
    window_start: int
    anomaly: str | None = None
    adjusts: str | None = None
    tags: str | None = None
    image_input_tokens: int = 0
    audio_input_tokens: int = 0
    prompt_us: int = 0
    generation_us: int = 0
