"""Heads that repeat: from the second time on they are not parsed, and mean what they meant."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, eventually
from tests.acceptance.raw import Raw, body, request
from tests.acceptance.serving import fake_upstream, gateway_before, next_record, plain, script_chat
from tests.emulators.upstream import FakeUpstream

MAX_BODY_MB = 1


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    """A scripted upstream."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture
def gateway(fake: FakeUpstream, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with a small limit on bodies; a traceback in its log fails the test."""
    with gateway_before(fake, tmp_path, settings={"max_body_mb": MAX_BODY_MB}) as running:
        yield running
        running.assert_no_failure()


def test_a_repeated_head_means_what_it_meant_and_its_body_what_it_says_now(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    """From the second time on it is not parsed; lengths, keys, limits and pieces are judged each time."""
    other = gateway.new_key()
    with Raw(gateway) as client:
        for length in (1, 2, 3, 40, 3_000, 1):
            before = script_chat(fake, plain())
            answer = client.ask(request(gateway.key, body("x" * length, n=1), headers={"X-Mark": "same"}))
            assert answer.status == 200
            sent = next_record(fake, before)
            assert sent.json()["messages"][0]["content"] == "x" * length
            assert sent.header("x-mark") == "same"
            assert gateway.event(answer.id)["api_key_id"] == gateway.key.id
        assert gateway.event(client.ask(request(other)).id)["api_key_id"] == other.id
        assert client.ask(request(gateway.key, b"not json")).code == "invalid_json"
        whole = request(gateway.key)
        client.send(whole[:-5])
        assert client.quiet_for(0.1)
        client.send(whole[-5:])
        assert client.answer().status == 200
        client.send(whole + whole)
        assert [client.answer().status, client.answer().status] == [200, 200]
        assert client.ask(request(gateway.key, b"x" * (MAX_BODY_MB * 2**20 + 1))).code == "request_too_large"


def test_a_repeated_head_with_a_revoked_key_is_refused(gateway: Gateway) -> None:
    """What is kept of a head is whose key it shows, and not that it was good."""
    key = gateway.new_key()
    with Raw(gateway) as client:
        for _ in range(3):
            assert client.ask(request(key)).status == 200
        gateway.weir("key", "revoke", key.id, "--yes")
        eventually(lambda: client.ask(request(key)).status == 401, "the key is refused")
