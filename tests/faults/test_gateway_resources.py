"""A full disk, and more clients than the system has descriptors: nothing is given away, and it passes."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, eventually
from tests.acceptance.raw import Answer, Raw, ask, body, request
from tests.acceptance.serving import fake_upstream, gateway_before, script_chat, streamed
from tests.emulators.upstream import FakeUpstream

FILES = 64


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home: Path = tmp_path_factory.mktemp("gateway")
    with gateway_before(fake, home) as running:
        yield running


def test_on_a_full_disk_nothing_is_given_away_and_all_is_well_when_there_is_room(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    """A limit on the size of files stands for the disk: to SQLite both are a write that fails."""
    assert ask(gateway, request(gateway.key)).status == 200
    before = len(gateway.events())
    unlimited = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
    try:
        script_chat(fake, *streamed("Hello", completion=2))
        with Raw(gateway) as client:
            client.send(request(gateway.key, body(stream=True)))
            client.head()
            told = client.rest_of_body()
        assert b"[DONE]" not in told
        assert Answer(503, (), told.rpartition(b"data: ")[2]).code == "recording_unavailable"
        assert ask(gateway, request(gateway.key)).code == "recording_unavailable"
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, unlimited)
    eventually(lambda: ask(gateway, request(gateway.key)).status == 200, "it records again")
    assert len(gateway.events()) == before + 1
    gateway.assert_sums_agree()


def test_more_clients_than_descriptors_are_served_when_others_have_left(gateway: Gateway) -> None:
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (FILES, limits[1]))
    try:
        with ExitStack() as clients:
            for _ in range(2 * FILES):
                clients.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=5))
            descriptors = Path(f"/proc/{gateway.pid}/fd")
            eventually(lambda: len(list(descriptors.iterdir())) >= FILES - 2, "all descriptors are taken")
            time.sleep(0.5)  # the gateway's distress is the point
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: ask(gateway, request(gateway.key)).status == 200, "it serves again")
    gateway.assert_sums_agree()
