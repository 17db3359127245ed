"""Rate limits of several workers on one port, of customers, by default, and changed while the gateway runs."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, Key, Upstream, eventually
from tests.acceptance.raw import Raw, ask, body, request
from tests.acceptance.serving import fake_upstream, next_record, plain, script_chat
from tests.emulators.upstream import Await, FakeUpstream, Gate


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    """A scripted upstream."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture
def gateway(fake: FakeUpstream, tmp_path: Path, database_url: str) -> Iterator[Gateway]:
    """Two workers on each engine."""
    with Gateway(tmp_path, Upstream(fake.url), database_url=database_url, settings={"workers": 2}) as running:
        yield running


def statuses(gateway: Gateway, *keys: Key, count: int) -> Counter[int]:
    """Ask on connections of their own, which the kernel spreads over the workers."""
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda number: ask(gateway, request(keys[number % len(keys)])), range(count))
        return Counter(answer.status for answer in answers)


def test_workers_let_through_together_what_the_limit_says(gateway: Gateway) -> None:
    """To the request: the refill of the seconds that the test takes comes on top."""
    key = gateway.new_key("--rpm", "20")
    found = statuses(gateway, key, count=80)
    assert set(found) == {200, 429}
    assert 20 <= found[200] <= 30


def test_a_customers_limit_is_for_all_its_keys_together(gateway: Gateway) -> None:
    keys = [gateway.new_key(), gateway.new_key("--rpm", "1000")]
    gateway.weir("customer", "set", "acme", "--rpm", "10")
    gateway.restart()
    found = statuses(gateway, *keys, count=60)
    assert 10 <= found[200] <= 16
    answer = ask(gateway, request(keys[0]))
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert "this account's limit of 10 requests per minute" in answer.json["error"]["message"]


def test_places_are_shared_and_free_again_when_a_worker_dies(gateway: Gateway, fake: FakeUpstream) -> None:
    key, gate = gateway.new_key("--concurrency", "1"), Gate()
    before = script_chat(fake, Await(gate), plain())
    with Raw(gateway) as client:
        client.send(request(key, body(stream=True)))
        next_record(fake, before)
        assert statuses(gateway, key, count=10) == {429: 10}
        gate.open()
        client.close()
    eventually(lambda: ask(gateway, request(key)).status == 200 or None, "the place is free")


def test_a_change_holds_in_all_workers_within_a_second(gateway: Gateway) -> None:
    """A limit that is set, raised and lifted; a key that is revoked; a customer who is suspended."""
    key = gateway.new_key()
    assert statuses(gateway, key, count=10) == {200: 10}
    gateway.weir("key", "set", key.id, "--rpm", "1")
    eventually(lambda: statuses(gateway, key, count=8) == {429: 8} or None, "set")
    gateway.weir("key", "set", key.id, "--rpm", "0")
    eventually(lambda: statuses(gateway, key, count=8) == {200: 8} or None, "lifted")
    gateway.weir("customer", "suspend", "acme")
    eventually(lambda: statuses(gateway, key, count=8) == {403: 8} or None, "suspended")
    gateway.weir("customer", "resume", "acme")
    eventually(lambda: statuses(gateway, key, count=8) == {200: 8} or None, "resumed")
    gateway.weir("key", "revoke", key.id, "--yes")
    eventually(lambda: statuses(gateway, key, count=8) == {401: 8} or None, "revoked")


def test_a_changed_margin_is_the_price_in_all_workers_within_a_second(gateway: Gateway) -> None:
    before = ask(gateway, request(gateway.key)).header("x-weir-amount")
    gateway.weir("margin", "set", "100%")

    def amounts() -> set[str | None]:
        return {ask(gateway, request(gateway.key)).header("x-weir-amount") for _ in range(12)}

    after = eventually(lambda: found if before not in (found := amounts()) else None, "the new price")
    assert len(after) == 1


def test_defaults_are_for_keys_without_limits_of_their_own(fake: FakeUpstream, tmp_path: Path) -> None:
    with Gateway(tmp_path / "gateway", Upstream(fake.url)) as gateway:
        own = gateway.new_key("--rpm", "50")
        text = gateway.config_path.read_text(encoding="utf-8")
        gateway.config_path.write_text(text + "\n[limits]\ndefault_rpm = 2\ndefault_tpm = 500\n", encoding="utf-8")
        gateway.restart()
        answer = ask(gateway, request(gateway.key))
        assert answer.header("x-ratelimit-limit-requests") == "2"
        assert answer.header("x-ratelimit-remaining-requests") == "1"
        assert answer.header("x-ratelimit-remaining-tokens") == "500"
        assert [ask(gateway, request(gateway.key)).status for _ in range(2)] == [200, 429]
        answer = ask(gateway, request(own))
        assert (answer.header("x-ratelimit-limit-requests"), answer.header("x-ratelimit-limit-tokens")) == ("50", "500")


def test_without_a_limit_nothing_is_said_of_limits(gateway: Gateway) -> None:
    answer = ask(gateway, request(gateway.key))
    assert not [name for name, _ in answer.headers if name.startswith("x-ratelimit")]
