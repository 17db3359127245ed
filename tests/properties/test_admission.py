"""Admission for any history and any body: against a plain account, and against what servers make of the same body."""

import json
import math
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.clock import MINUTE_US
from billing.limits import TOKENS_PER_EVENT_MAX
from billing.money import Pico, PicoPerToken
from billing.pricing.quote import UnitPrices
from billing.usage import Usage
from proxy.admit.limits import Buckets, check, give_back, take_request
from proxy.relay.gathering import is_same_as_stream
from proxy.relay.refusals import Refusal
from proxy.relay.request import CHAT, COMPLETIONS, Ask, forward, read
from proxy.settle import judged

START = 1_772_366_400 * 10**6

# what happens next: time passes (in microseconds), a request asks, or one in flight ends with so many tokens
pauses = st.integers(0, 1_000) | st.integers(0, 2 * MINUTE_US) | st.sampled_from([MINUTE_US, MINUTE_US // 60])
sizes = st.integers(0, 9) | st.integers(0, 5_000)
steps = st.lists(st.tuples(pauses, st.integers(0, 2), st.integers(0, 2_000)), max_size=60)


class Account:
    """A minute's worth that is spent and refills: fractions, no rounding, no instants."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.left = Fraction(limit)

    def pass_time(self, microseconds: int) -> None:
        self.left = min(Fraction(self._limit), self.left + Fraction(self._limit * microseconds, MINUTE_US))


@given(sizes, sizes, st.integers(0, 4), steps)
@settings(max_examples=300, deadline=None)
def test_limits_let_through_what_a_plain_account_lets_through(
    rpm: int, tpm: int, places: int, history: list[tuple[int, int, int]]
) -> None:
    """The same verdict each time, the same limit named; whoever waits as told is not refused for it again."""
    buckets, requests, tokens, in_flight, now = Buckets(), Account(rpm), Account(tpm), 0, START
    for pause, is_end, used in history:
        now += pause
        requests.pass_time(pause)
        tokens.pass_time(pause)
        if is_end and in_flight:
            give_back(buckets, tpm, used, now)
            in_flight, tokens.left = in_flight - 1, tokens.left - used
            continue
        verdict = check(buckets, rpm, tpm, places, now)
        reasons = [
            ("concurrency", places and in_flight >= places),
            ("requests", rpm and requests.left < 1),
            ("tokens", tpm and tokens.left <= 0),
        ]
        if tpm == 0 or tokens.left != 0:  # at 0 either is right: shares of a token are rounded down by a picosecond
            expected = next((kind for kind, is_reason in reasons if is_reason), None)
            assert (verdict.kind if verdict is not None else None) == expected
        if verdict is None:
            take_request(buckets, rpm, now)
            in_flight, requests.left = in_flight + 1, requests.left - 1
        elif verdict.kind != "concurrency":
            assert verdict.retry_us > 0
            later = check(buckets, rpm, tpm, places, now + verdict.retry_us)
            assert later is None or later.kind != verdict.kind
        assert buckets.in_flight == in_flight >= 0
        assert type(buckets.requests_until) is type(buckets.tokens_until) is int


@given(
    st.integers(1, 5_000),
    st.integers(1, 5_000),
    st.lists(st.tuples(pauses, st.integers(0, 9_000)), min_size=1, max_size=60),
)
@settings(deadline=None)
def test_no_more_than_the_limit_and_what_was_in_flight_gets_through(
    rpm: int, tpm: int, asks: list[tuple[int, int]]
) -> None:
    """Over any time t from the start: L + L·t requests, and tokens beyond that only of the last one let in."""
    buckets, now, taken, used = Buckets(), START, 0, 0
    for pause, tokens in asks:
        now += pause
        if check(buckets, rpm, tpm, 0, now) is not None:
            continue
        assert used * MINUTE_US <= tpm * (MINUTE_US + now - START), "an overdrawn key was let in"
        take_request(buckets, rpm, now)
        give_back(buckets, tpm, tokens, now)
        taken, used = taken + 1, used + tokens
        assert taken * MINUTE_US <= rpm * (MINUTE_US + now - START)


# bodies

numbers = (
    st.none()
    | st.integers(-2, 5)
    | st.integers(0, 40)
    | st.sampled_from([2.0, 20.7, "7", True, False, [], 2**31, 2**63])
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": numbers,
        "max_completion_tokens": numbers,
        "n_predict": numbers,
        "n": numbers,
        "n_cmpl": numbers,
        "best_of": numbers,
        "stream": st.none() | st.booleans() | st.just("yes"),
        "stream_options": st.none()
        | st.just({})
        | st.fixed_dictionaries(
            {},
            optional={
                "include_usage": st.none() | st.booleans() | st.just(1),
                "continuous_usage_stats": st.booleans(),
                "x": st.just([1.5]),
            },
        ),
        "prompt": st.sampled_from(["a", ["a", "b", "c"], [1, 2, 3], ["a", 1], [[1], [2, 3]], [], None]),
        "stop": st.sampled_from([None, "x", ["x"], []]),
        "other": st.recursive(
            st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
            lambda i: st.lists(i, max_size=3),
            max_leaves=5,
        ),
    },
)


def first(body: dict[str, Any], *names: str) -> Any:
    """The value of the first of these fields that is not null."""
    return next((body[name] for name in names if body.get(name) is not None), None)


def may_generate(kind: str, endpoint: str, body: dict[str, Any]) -> float:
    """The most tokens that a server generates for a body: llama.cpp as measured on b11549, the others by their source.

    Which limit is obeyed, which value means none, what makes several outputs, what makes several prompts.
    """
    prompt = body.get("prompt") if endpoint == COMPLETIONS else None
    prompts = (
        len(prompt) if isinstance(prompt, list) and prompt and all(type(part) is not int for part in prompt) else 1
    )
    n, best_of = int(body.get("n") or 1), int(body.get("best_of") or 1)
    match kind:
        case "llamacpp":
            limit = first(body, "n_predict", "max_completion_tokens", "max_tokens")
            each = math.inf if limit is None or int(limit) < 0 else max(1, int(limit))
            return each * int(first(body, "n_cmpl", "n") or 1) * prompts
        case "vllm" | "sglang":
            modern = body.get("max_completion_tokens") if endpoint == CHAT else None
            limit = modern or body.get("max_tokens") or None
        case _:
            limit = body.get("max_tokens") or None
    return (math.inf if limit is None or int(limit) < 0 else int(limit)) * max(n, best_of) * prompts


@given(
    fields, st.sampled_from([CHAT, COMPLETIONS]), st.sampled_from(["llamacpp", "vllm", "sglang", "ollama", "openai"])
)
@settings(max_examples=600, deadline=None)
def test_a_clamp_never_gives_away_what_an_honest_server_generated(
    asked: dict[str, Any], endpoint: str, kind: str
) -> None:
    """Whatever a client writes into the fields that limit an answer, the limit is at least what may come."""
    taken = read(endpoint, json.dumps({"model": "m", **asked}).encode())
    if isinstance(taken, Ask) and (limit := taken.limit_on(kind)) is not None:
        seen = json.loads(forward(taken, "M", reports_each_output=kind == "llamacpp").raw)
        assert limit >= may_generate(kind, endpoint, seen)


@given(fields)
@settings(max_examples=300, deadline=None)
def test_what_is_admitted_is_what_is_forwarded(asked: dict[str, Any]) -> None:
    """I8: another parser finds the client's value in what the upstream gets, but for the documented changes."""
    body = {"model": "m", **asked}
    taken = read(COMPLETIONS, json.dumps(body).encode())
    if isinstance(taken, Refusal):
        assert taken.code == "invalid_request"
        return
    assert taken.body == body
    for llama in (True, False):
        forwarded = forward(taken, "M", reports_each_output=llama)
        documented: dict[str, Any] = {"model": "M"}
        if taken.streams:
            options = {**(body.get("stream_options") or {}), "include_usage": True}
            if not taken.wants_usage:
                options.pop("continuous_usage_stats", None)
            documented["stream_options"] = options
        elif llama and (taken.outputs.total > 1 or is_same_as_stream(COMPLETIONS, body)):
            documented |= {"stream": True, "stream_options": {"include_usage": True}}
        assert json.loads(forwarded.raw) == {**body, **documented}
        assert forwarded.gathers is ("stream" in documented)
        assert forwarded.hides_usage is (taken.streams and not taken.wants_usage)


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ model1.e-tn', max_size=60).map(str.encode),
    st.sampled_from([CHAT, COMPLETIONS]),
)
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_the_reading(raw: bytes, endpoint: str) -> None:
    """A refusal or a request that can be forwarded, never an error of ours."""
    taken = read(endpoint, raw)
    if isinstance(taken, Ask):
        assert json.loads(forward(taken, "M", reports_each_output=True).raw)["model"] == "M"
    else:
        assert taken.status == 400


# what is billed of a report

counts = (
    st.integers(-5, 50) | st.integers(-(2**63), 2**64) | st.integers(TOKENS_PER_EVENT_MAX - 1, TOKENS_PER_EVENT_MAX + 1)
)
reports = st.builds(Usage, counts, counts, counts, counts)
prices = st.integers(0, 10**6).map(PicoPerToken)


@given(reports, st.none() | st.integers(1, 60), prices, prices, prices, prices)
@settings(deadline=None)
def test_a_report_is_billed_to_at_most_what_it_says_and_its_proof_is_final(
    reported: Usage,
    limit: int | None,
    input_price: PicoPerToken,
    cached: PicoPerToken,
    output: PicoPerToken,
    reasoning: PicoPerToken,
) -> None:
    """No count grows, no part exceeds its whole, nothing is negative; judged again it stays, without a mark."""
    billed, anomaly = judged(reported, limit)
    assert all(0 <= count <= max(0, given) for count, given in zip(billed, reported, strict=True))
    assert billed.cached_input_tokens <= billed.input_tokens <= TOKENS_PER_EVENT_MAX
    assert billed.reasoning_tokens <= billed.output_tokens <= min(TOKENS_PER_EVENT_MAX, limit or TOKENS_PER_EVENT_MAX)
    media = reported.image_input_tokens, reported.audio_input_tokens  # cached they are billed as that: nothing is wrong
    is_possible = min(media) >= 0 and sum(media) <= reported.input_tokens
    assert (anomaly is None) == (billed[:4] == reported[:4] and is_possible)
    assert judged(billed, limit) == (billed, None)
    charged = UnitPrices(input_price, cached, output, reasoning, Pico(0)).charge(billed)
    dearest = max(0, reported.input_tokens) * max(input_price, cached) + max(0, reported.output_tokens) * max(
        output, reasoning
    )
    assert 0 <= charged <= dearest
