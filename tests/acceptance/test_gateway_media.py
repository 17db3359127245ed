"""Tokens of images and audio through the gateway: priced apart, shown in every listing, and the books agree."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream
from tests.acceptance.raw import Answer, ask, body, request
from tests.acceptance.serving import chat, fake_upstream, script_chat
from tests.emulators.upstream import FakeUpstream, chat_chunk, done, event, json_answer, last_chunk, sse_head

TOLD: dict[str, Any] = {
    "prompt_tokens": 1_000,
    "completion_tokens": 3,
    "total_tokens": 1_003,
    "prompt_tokens_details": {"cached_tokens": 400, "image_tokens": 350, "audio_tokens": 100},
}
AMOUNT = 34_918_000
"""150 × 0.039 + 400 × 0.013 + 350 × 0.065 + 100 × 0.0065 + 3 × 0.156 per 1M, in picounits: by hand."""

COUNTS = {
    "input_tokens": 1_000,
    "cached_input_tokens": 400,
    "image_input_tokens": 350,
    "audio_input_tokens": 100,
    "output_tokens": 3,
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    """One model server for the tests of what can not be true."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """And one gateway."""
    with Gateway(tmp_path_factory.mktemp("gateway"), Upstream(fake.url)) as gateway:
        yield gateway


def asked(gateway: Gateway, fake: FakeUpstream, usage: dict[str, Any], *, is_stream: bool = False) -> Answer:
    """The answer to a request with a picture, whose upstream tells this usage."""
    if is_stream:
        chunk = event({**chat_chunk("hello"), "choices": [], "usage": usage})
        script_chat(fake, sse_head(), event(chat_chunk("hello", finish="stop")), chunk, done(), last_chunk())
    else:
        script_chat(fake, json_answer({**chat(1_000, 3), "usage": usage}))
    message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}
    return ask(gateway, request(gateway.key, {**body(), "messages": [message], "stream": is_stream}))


def picked(row: dict[str, Any]) -> dict[str, Any]:
    """The counts in a row."""
    return {name: row[name] for name in COUNTS}


def test_images_and_audio_are_priced_where_the_upstream_reports_them(database_url: str, tmp_path: Path) -> None:
    with (
        fake_upstream() as fake,
        Gateway(tmp_path / "gateway", Upstream(fake.url), database_url=database_url) as gateway,
    ):
        plain = gateway.event(asked(gateway, fake, TOLD).id)
        assert plain["amount_pico"] == 1_000 * 39_000 + 3 * 156_000, "without rates of their own they are input"
        rates = ("--cached-input", "0.01", "--image-input", "0.05", "--audio-input", "0.005")
        gateway.weir("cost", "set", MODEL, "--input", "0.03", "--output", "0.12", *rates)
        listed = json.loads(gateway.weir("cost", "list", "--json"))
        assert {(row["image_input"], row["audio_input"]) for row in listed if row["model"] == MODEL} == {
            (None, None),
            ("0.0500", "0.0050"),
        }
        gateway.restart()
        for is_stream in (False, True):
            answer = asked(gateway, fake, TOLD, is_stream=is_stream)
            row = gateway.event(answer.id)
            assert picked(row) == COUNTS
            assert (row["amount_pico"], row["anomaly"]) == (AMOUNT, None)
        traced = json.loads(gateway.weir("trace", answer.id, "--json"))
        assert picked(traced) == COUNTS
        assert (traced["unit_prices"]["image_input"], traced["unit_prices"]["audio_input"]) == ("0.0650", "0.0065")
        (line,) = json.loads(gateway.weir("usage", "--json"))
        assert picked(line) == {name: 3 * count for name, count in COUNTS.items()}
        for table in (gateway.weir("usage"), gateway.weir("report", "margin")):
            assert "image input" in table
        receipt = ask(gateway, request(gateway.key, method="GET", path=f"/v1/requests/{answer.id}"))
        assert picked(json.loads(receipt.body)) == COUNTS
        models = json.loads(ask(gateway, request(gateway.key, method="GET", path="/v1/models")).body)
        assert '"image_input": "0.0650", "audio_input": "0.0065"' in json.dumps(models)
        assert "all hold" in gateway.weir("audit", "ledger")
        gateway.assert_sums_agree()


@pytest.mark.parametrize(
    ("details", "billed", "anomaly"),
    [
        ({"cached_tokens": 900, "image_tokens": 350}, (900, 100, 0), None),
        ({"image_tokens": 800, "audio_tokens": 201}, (0, 800, 200), "media_exceeds_input"),
        ({"image_tokens": -1, "audio_tokens": 5}, (0, 0, 5), "negative"),
        ({"image_tokens": "many", "audio_tokens": None}, (0, 0, 0), None),
    ],
)
def test_parts_are_within_the_prompt_and_never_overlap(
    gateway: Gateway, fake: FakeUpstream, details: dict[str, Any], billed: tuple[int, int, int], anomaly: str | None
) -> None:
    row = gateway.event(asked(gateway, fake, {**TOLD, "prompt_tokens_details": details}).id)
    assert (row["cached_input_tokens"], row["image_input_tokens"], row["audio_input_tokens"]) == billed
    assert (row["input_tokens"], row["anomaly"]) == (1_000, anomaly)
