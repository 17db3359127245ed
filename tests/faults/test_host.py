"""Hosts with faults under load: fsync fails, and somebody sets the clock; then the money is counted."""

import mmap
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually, price
from tests.acceptance.raw import ask, request
from tests.faults.load import Load, assert_recorded, stand_in

ANSWERS = 60
CREDIT = 60 * price(600, 64)
pytestmark = pytest.mark.slow


class Host:
    """What a gateway that has `host.c` preloaded sees of its host."""

    def __init__(self, home: Path) -> None:
        """All is well."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        assert compiler is not None, "install the package `gcc`"
        library, self._state = home / "host.so", home / "host.state"
        source = Path(__file__).with_name("host.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(source)], check=True
        )
        self._state.write_bytes(bytes(16))
        self.environment = {"LD_PRELOAD": str(library), "WEIR_HOST": str(self._state)}

    def set(self, *, clock_off_s: int = 0, is_disk_failing: bool = False) -> None:
        """Let the wall clock be so many seconds off, and fsync fail or not."""
        with self._state.open("r+b") as file, mmap.mmap(file.fileno(), 16) as state:
            state[:] = struct.pack("qq", clock_off_s, is_disk_failing)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host in good order."""
    return Host(tmp_path)


@contextmanager
def gateway_on(host: Host, home: Path, database_url: str | None = None) -> Iterator[Gateway]:
    """A gateway on it, before a model server that is never the slowest."""
    with stand_in(home / "bench") as url:
        upstream = Upstream(url, models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"})
        given = {"database_url": database_url, "is_fresh": True, "environment": host.environment}
        with Gateway(home / "gateway", upstream, **given) as running:  # type: ignore[arg-type]
            yield running


def test_a_disk_that_keeps_nothing_gives_nothing_away(host: Host, tmp_path: Path) -> None:
    """While fsync fails, for the ledger and for the spool, nobody gets last bytes; afterwards it goes on by itself."""
    with gateway_on(host, tmp_path) as gateway:
        through_failing_fsync(gateway, host)


def through_failing_fsync(gateway: Gateway, host: Host) -> None:
    """Load, and a disk that fails meanwhile."""
    with Load(gateway, clients=6) as load:
        load.wait_for(ANSWERS)
        host.set(is_disk_failing=True)
        eventually(lambda: load.seen.refused["recording_unavailable"] > 20, "it refuses")
        assert gateway.readiness["checks"]["recorder"] == "failing"
        whole = len(load.seen.whole)
        refused = load.seen.refused["recording_unavailable"]
        eventually(lambda: load.seen.refused["recording_unavailable"] > refused + 20, "and refuses")
        assert len(load.seen.whole) == whole, "not one answer is released"
        host.set()
        load.wait_for(ANSWERS)
        gateway.kill9()
        gateway.start()
        load.wait_for(ANSWERS)
    gateway.await_drained()
    assert_recorded(gateway, load.seen.whole)


def test_a_clock_that_is_set_loses_nothing_and_gives_nothing_away(
    host: Host, tmp_path: Path, database_url: str
) -> None:
    """Forward and back by hours, beside a database (PostgreSQL) whose clock stays; nobody overspends."""
    with gateway_on(host, tmp_path, database_url) as gateway:
        through_clock_steps(gateway, host)


def through_clock_steps(gateway: Gateway, host: Host) -> None:
    """Load, also of a prepaid customer, and a clock that is set meanwhile."""
    gateway.weir("customer", "add", "prepaid", "--prepaid")
    gateway.weir("credit", "grant", "prepaid", f"{CREDIT / 10**12:.12f}")
    prepaid = gateway.new_key(customer="prepaid")
    with Load(gateway, clients=4) as load, Load(gateway, clients=2, seed=2, key=prepaid) as limited:
        for off_s in (0, 3_700, 90_000, 3_600, 1):  # never to before there was a price
            host.set(clock_off_s=off_s)
            load.wait_for(ANSWERS)
            assert_clock(gateway, off_s)
        eventually(lambda: limited.seen.refused["insufficient_credits"] > 0, "the credit is used up")
    gateway.await_drained()
    events = assert_recorded(gateway, [*load.seen.whole, *limited.seen.whole])
    used = sum(row["amount_pico"] for row in events if row["api_key_id"] == prepaid.id)
    assert 0 < used <= CREDIT


def assert_clock(gateway: Gateway, off_s: int) -> None:
    """Fail unless the gateway sees the clock so."""
    answer = ask(gateway, request(gateway.key))
    started = gateway.event(answer.id)["started_at"]
    assert abs(started - off_s * 10**6 - time.time_ns() // 1_000) < 60 * 10**6, os.fspath(gateway.home)
