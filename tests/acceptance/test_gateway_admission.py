"""Who may ask, for what and how often: the error table, as the official SDK and a bare socket see it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from tests.acceptance.harness import CUSTOMER, MODEL, UNPRICED, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import Answer, Raw, ask, body, request
from tests.acceptance.serving import asked, chat, fake_upstream, next_record, plain, script_chat, streamed
from tests.emulators.upstream import (
    Await,
    Close,
    FakeUpstream,
    Gate,
    Step,
    chat_chunk,
    done,
    event,
    json_answer,
    last_chunk,
    sse_head,
    usage_chunk,
)

SECOND = "second-model"
LONG = "word " * 1_200
"""A prompt for which the usage of these tests is plausible."""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstream = Upstream(fake.url, models={MODEL: MODEL, SECOND: "theirs", UNPRICED: MODEL})
    with Gateway(tmp_path_factory.mktemp("gateway"), upstream) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway; a traceback in its log fails the test, and it has to serve after each."""
    yield shared
    shared.assert_no_failure()
    assert ask(shared, request(shared.key)).status == 200, "it still serves"


@contextmanager
def sdk(gateway: Gateway, key: Key) -> Iterator[openai.OpenAI]:
    """The official client, without retries."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key.secret, max_retries=0) as client:
        yield client


def assert_sdk_raises(error: type[openai.APIStatusError], gateway: Gateway, key: Key, model: str = MODEL) -> None:
    """Ask through the official client, which has to raise this error."""
    with sdk(gateway, key) as client, pytest.raises(error):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


def after_change(gateway: Gateway, key: Key, status: int, **fields: object) -> Answer:
    """The first answer after the gateway has looked for changes: it must have this status."""
    gateway.await_changes()
    answer = ask(gateway, request(key, {**body(), **fields}))
    assert answer.status == status
    return answer


# keys


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wk_",
        "Bearer wk_unknown",
        "Bearer sk-something",
        "Basic d2VpcjpzZWNyZXQ=",
        "Bearer wk_\xff\xfe",
    ],
)
def test_without_a_valid_key_it_is_401_and_the_upstream_hears_nothing(
    gateway: Gateway, fake: FakeUpstream, header: str | None
) -> None:
    before, events = len(asked(fake)), len(gateway.events())
    answer = ask(gateway, request(None, headers={} if header is None else {"Authorization": header or " "}))
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert answer.id
    assert len(asked(fake)) == before
    assert len(gateway.events()) == events


def test_a_key_holds_in_any_case_of_the_word_bearer(gateway: Gateway) -> None:
    assert ask(gateway, request(None, headers={"Authorization": f"bearer {gateway.key.secret}"})).status == 200


def test_a_revoked_key_is_refused_within_a_second(gateway: Gateway) -> None:
    key = gateway.new_key()
    assert ask(gateway, request(key)).status == 200
    gateway.weir("key", "revoke", key.id)
    assert after_change(gateway, key, 401).code == "invalid_api_key"
    assert_sdk_raises(openai.AuthenticationError, gateway, key)


def test_a_new_key_holds_at_once(gateway: Gateway) -> None:
    assert ask(gateway, request(gateway.new_key())).status == 200


def test_an_expired_key_is_refused_at_its_instant(gateway: Gateway) -> None:
    key = gateway.new_key("--expires", "+1s")
    assert ask(gateway, request(key)).status == 200
    eventually(lambda: ask(gateway, request(key)).status == 401, "it expires")
    assert ask(gateway, request(key)).code == "invalid_api_key"


def test_a_suspended_customer_is_refused_within_a_second_and_served_again_when_resumed(gateway: Gateway) -> None:
    key = gateway.new_customer("late payer")
    other = gateway.new_key(customer="late payer")
    assert ask(gateway, request(key)).status == 200
    gateway.weir("customer", "suspend", "late payer", "--reason", "invoice 7 is unpaid")
    answer = after_change(gateway, key, 403)
    assert answer.code == "customer_suspended"
    assert "invoice 7 is unpaid" in answer.json["error"]["message"]
    assert ask(gateway, request(other)).code == "customer_suspended"
    assert_sdk_raises(openai.PermissionDeniedError, gateway, key)
    assert ask(gateway, request(gateway.key)).status == 200, "others are served"
    gateway.weir("customer", "resume", "late payer")
    after_change(gateway, key, 200)


def test_a_stream_goes_on_when_its_customer_is_suspended_in_the_middle(gateway: Gateway, fake: FakeUpstream) -> None:
    key, gate = gateway.new_customer("midway"), Gate()
    script_chat(fake, sse_head(), event(chat_chunk("a")), Await(gate), event(usage_chunk(7, 2)), done(), last_chunk())
    with Raw(gateway) as client:
        client.send(request(key, body(stream=True)))
        answer = client.head()
        client.chunk()
        gateway.weir("customer", "suspend", "midway")
        after_change(gateway, key, 403)
        gate.open()
        assert b"[DONE]" in client.rest_of_body()
    assert gateway.event(answer.id)["outcome"] == "completed"


# models


def test_a_model_without_a_price_is_refused_and_served_once_it_has_one(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, body(model=UNPRICED)))
    assert (answer.status, answer.code) == (403, "model_not_priced")
    assert len(asked(fake)) == before
    gateway.weir("cost", "set", UNPRICED, "--input", "1", "--output", "2")
    answer = after_change(gateway, gateway.key, 200, model=UNPRICED)
    # 1 usd per 1M is 1,000,000 picounits a token, 30 % more 1,300,000; 7 in at that and 3 out at twice.
    assert gateway.event(answer.id)["amount_pico"] == 7 * 1_300_000 + 3 * 2_600_000


@pytest.mark.parametrize("model", ["gpt-5", "QWEN3.5-0.8B", "theirs", "../etc"])
def test_an_unknown_model_is_404_and_the_upstream_hears_nothing(
    gateway: Gateway, fake: FakeUpstream, model: str
) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, body(model=model)))
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert len(asked(fake)) == before
    assert_sdk_raises(openai.NotFoundError, gateway, gateway.key, model)


def test_a_key_uses_and_sees_only_its_models(gateway: Gateway, fake: FakeUpstream) -> None:
    key = gateway.new_key("--models", SECOND)
    before = len(asked(fake))
    assert ask(gateway, request(key)).code == "model_not_found"
    assert ask(gateway, request(key, body(model=SECOND))).status == 200
    assert next_record(fake, before).json()["model"] == "theirs"
    with sdk(gateway, key) as client:
        (listed,) = client.models.list().data
        assert listed.id == SECOND
        assert client.models.retrieve(SECOND).id == SECOND
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(MODEL)


def test_models_are_listed_with_this_customers_prices(gateway: Gateway) -> None:
    answer = ask(gateway, request(gateway.key, b"", method="GET", path=f"/v1/models/{MODEL}"))
    assert answer.json["pricing"]["input"] == "0.0390"
    assert answer.json["pricing"]["output"] == "0.1560"
    assert ask(gateway, request(None, b"", method="GET", path="/v1/models")).code == "invalid_api_key"


# bodies


BODIES = {
    "empty": (b"", "invalid_json"),
    "no json": (b"hello", "invalid_json"),
    "cut": (b'{"model":', "invalid_json"),
    "two values": (b"{}{}", "invalid_json"),
    "not utf-8": (b'{"model":"\xff"}', "invalid_json"),
    "utf-16": ('{"model":"x"}'.encode("utf-16"), "invalid_json"),
    "a lone surrogate": (b'{"model":"\\ud800"}', "invalid_json"),
    "NaN": (b'{"model":"qwen3.5-0.8b","temperature":NaN}', "invalid_json"),
    "deeper than any parser": (b"[" * 100_000, "invalid_json"),
    "an array": (b"[]", "invalid_request"),
    "null": (b"null", "invalid_request"),
    "a number": (b"1", "invalid_request"),
    "no model": (b"{}", "invalid_request"),
    "a model that is no text": (b'{"model":1}', "invalid_request"),
    "a stream that is no truth": (b'{"model":"qwen3.5-0.8b","stream":"yes"}', "invalid_request"),
    "too many outputs": (b'{"model":"qwen3.5-0.8b","n":100000}', "invalid_request"),
    "outputs below one": (b'{"model":"qwen3.5-0.8b","n":0}', "invalid_request"),
    "deeper than can be written": (
        b'{"model":"qwen3.5-0.8b","x":' + b"[" * 400 + b"]" * 400 + b"}",
        "invalid_request",
    ),
}


@pytest.mark.parametrize(("content", "code"), BODIES.values(), ids=BODIES.keys())
def test_a_body_that_can_not_be_read_is_400_and_the_upstream_hears_nothing(
    gateway: Gateway, fake: FakeUpstream, content: bytes, code: str
) -> None:
    before, events = len(asked(fake)), len(gateway.events())
    answer = ask(gateway, request(gateway.key, content))
    assert (answer.status, answer.code) == (400, code)
    assert len(asked(fake)) == before
    assert len(gateway.events()) == events


# limits


def test_requests_per_minute_are_limited_and_the_client_is_told_when_to_come_back(gateway: Gateway) -> None:
    key = gateway.new_key("--rpm", "2")
    assert [ask(gateway, request(key)).status for _ in range(2)] == [200, 200]
    answer = ask(gateway, request(key))
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.header("retry-after") or 0) <= 30
    assert answer.header("x-ratelimit-limit-requests") == "2"
    assert answer.header("x-ratelimit-remaining-requests") == "0"
    reset = answer.header("x-ratelimit-reset-requests") or ""
    assert reset == "1m0s" or float(reset.removesuffix("s")) > int(answer.header("retry-after") or 0), "all of it"
    assert answer.header("x-ratelimit-limit-tokens") is None, "there is no such limit"
    assert_sdk_raises(openai.RateLimitError, gateway, key)
    assert ask(gateway, request(gateway.key)).status == 200, "others are served"


def test_tokens_per_minute_are_limited(gateway: Gateway, fake: FakeUpstream) -> None:
    key = gateway.new_key("--tpm", "1000")
    script_chat(fake, plain(900, 200))
    assert ask(gateway, request(key, body(LONG))).status == 200
    answer = ask(gateway, request(key))
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert answer.header("x-ratelimit-limit-tokens") == "1000"
    assert answer.header("x-ratelimit-remaining-tokens") == "0"
    assert 1 <= int(answer.header("retry-after") or 0) <= 60


def test_requests_at_a_time_are_limited(gateway: Gateway, fake: FakeUpstream) -> None:
    key, gate = gateway.new_key("--concurrency", "1"), Gate()
    before = script_chat(fake, Await(gate), plain())
    with Raw(gateway) as client:
        client.send(request(key))
        next_record(fake, before)
        answer = ask(gateway, request(key))
        assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert answer.header("retry-after") == "1"
        gate.open()
        assert client.answer().status == 200
    assert ask(gateway, request(key)).status == 200


BAD_DAYS: dict[str, tuple[Step, ...]] = {
    "an error": (json_answer({"error": {}}, status=500),),
    "a cut": (sse_head(), event(chat_chunk("a")), Close()),
    "nothing": (Close(),),
    "no http": (event("x", chunked=False), Close()),
    "an error event": (sse_head(), event({"error": {"message": "no"}}), done(), last_chunk()),
}


@pytest.mark.parametrize("steps", BAD_DAYS.values(), ids=BAD_DAYS.keys())
def test_a_failed_request_gives_its_place_back(gateway: Gateway, fake: FakeUpstream, steps: tuple[Step, ...]) -> None:
    key = gateway.new_key("--concurrency", "1")
    for _ in range(3):
        fake.script(plain(), Close())  # no kept connection is left, so that nothing is tried again
        ask(gateway, request(gateway.key))
        script_chat(fake, *steps)
        ask(gateway, request(key, body(stream=True)))
    assert ask(gateway, request(key)).status == 200


def test_a_client_that_leaves_gives_its_place_back(gateway: Gateway, fake: FakeUpstream) -> None:
    key = gateway.new_key("--concurrency", "1")
    for _ in range(3):
        before = script_chat(fake, Await(Gate()))
        with Raw(gateway) as client:
            client.send(request(key))
            record = next_record(fake, before)
        assert record.client_closed.wait(20)
        eventually(lambda: ask(gateway, request(key)).status == 200, "its place is free")


# prices


def test_the_amount_is_the_same_in_the_header_the_body_and_the_ledger(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, plain(1234, 567))
    answer = ask(gateway, request(gateway.key, body(LONG)))
    row = gateway.event(answer.id)
    assert row["amount_pico"] == price(1234, 567)
    assert row["cost_pico"] == 1234 * 30_000 + 567 * 120_000
    # 1234 × 39,000 + 567 × 156,000 picounits, by hand.
    assert answer.header("x-weir-amount") == "0.000136578000 usd"
    assert b'"cost":0.000136578}' in answer.body
    assert (row["api_key_id"], row["model"], row["http_status"]) == (gateway.key.id, MODEL, 200)
    assert row["started_at"] <= row["finished_at"]


def test_the_amount_of_a_stream_is_in_its_usage_if_the_client_asked(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, *streamed("a", prompt=1234, completion=567))
    answer = ask(gateway, request(gateway.key, body(LONG, stream=True, stream_options={"include_usage": True})))
    usage = json.loads(answer.events[-2])["usage"]
    assert usage["cost"] == 0.000136578
    assert gateway.event(answer.id)["amount_pico"] == price(1234, 567)


def test_usage_that_the_client_did_not_ask_for_is_hidden_and_billed(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, *streamed("a", prompt=1234, completion=567))
    answer = ask(gateway, request(gateway.key, body(LONG, stream=True)))
    assert next_record(fake, before).json()["stream_options"] == {"include_usage": True}
    assert b"usage" not in answer.body
    assert [len(json.loads(data)["choices"]) for data in answer.events[:-1]] == [1, 1, 1]
    assert gateway.event(answer.id)["amount_pico"] == price(1234, 567)


def test_a_new_margin_holds_within_a_second_and_never_in_the_middle_of_a_stream(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    key, gate = gateway.new_customer("haggler"), Gate()
    deltas = (event(chat_chunk("a")), Await(gate), event(usage_chunk(100, 10)))
    script_chat(fake, sse_head(), *deltas, done(), last_chunk())
    with Raw(gateway) as client:
        client.send(request(key, body(stream=True, stream_options={"include_usage": True})))
        midway = client.head()
        client.chunk()
        gateway.weir("margin", "set", "100%", "--customer", "haggler")
        answer = after_change(gateway, key, 200)
        assert gateway.event(answer.id)["amount_pico"] == 7 * 60_000 + 3 * 240_000
        gate.open()
        assert b'"cost":0.00000546}' in client.rest_of_body()
    row = gateway.event(midway.id)
    assert row["amount_pico"] == price(100, 10)
    (quote,) = gateway.rows(f"SELECT * FROM price_quotes WHERE ref = '{row['price_ref']}'")
    assert (quote["margin"], quote["input_pico"], quote["output_pico"]) == ("30%", 39_000, 156_000)
    assert ask(gateway, request(gateway.key)).header("x-weir-amount") == "0.000000741000 usd", "others pay as before"


def test_usage_that_can_not_be_true_is_clamped_and_marked(gateway: Gateway, fake: FakeUpstream) -> None:
    lie = chat(7, 5000)
    lie["usage"] = {"prompt_tokens": 7, "completion_tokens": 5000, "prompt_tokens_details": {"cached_tokens": 99}}
    script_chat(fake, json_answer(lie))
    row = gateway.event(ask(gateway, request(gateway.key, body(max_tokens=10))).id)
    assert (row["input_tokens"], row["cached_input_tokens"], row["output_tokens"]) == (7, 7, 10)
    assert set(row["anomaly"].split(",")) == {"cached_exceeds_input", "output_exceeds_limit"}


def test_the_command_line_shows_what_the_client_paid(gateway: Gateway, fake: FakeUpstream) -> None:
    script_chat(fake, plain(1000, 100))
    answer = ask(gateway, request(gateway.key, body(LONG)))
    traced = json.loads(gateway.weir("trace", answer.id, "--json"))
    traced = traced[0] if isinstance(traced, list) else traced
    assert traced["amount"].startswith("0.0000546")
    reported = json.loads(gateway.weir("usage", "--customer", CUSTOMER, "--json"))
    events = [row for row in gateway.events() if row["customer_id"] == gateway.event(answer.id)["customer_id"]]
    assert sum(row["requests"] for row in reported) == len(events)
    assert sum(row["output_tokens"] for row in reported) == sum(event["output_tokens"] for event in events)
    gateway.assert_sums_agree()
