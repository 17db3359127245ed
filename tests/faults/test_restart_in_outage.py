"""Workers, and a whole gateway, that start while the database is away: they serve, or wait and say so (DESIGN §6)."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from billing.ledger import memo
from tests.acceptance.harness import CUSTOMER, Gateway, Upstream, eventually
from tests.acceptance.raw import ask, body, request
from tests.acceptance.serving import fake_upstream
from tests.faults.test_kill_gateway import await_replacement
from tests.support.postgres import PostgresServer

ASKED = 12
LISTENING = "gateway.listening"


def answers(gateway: Gateway, content: bytes) -> Counter[tuple[int, str | None]]:
    """What is answered on connections of their own, which the kernel spreads over the workers."""
    found = [ask(gateway, content) for _ in range(ASKED)]
    return Counter((answer.status, None if answer.status == 200 else answer.code) for answer in found)


def await_listening(gateway: Gateway, count: int) -> None:
    """Return once workers have begun to listen so many times."""
    eventually(lambda: gateway.log.count(LISTENING) >= count, "they listen")


def kill_workers(gateway: Gateway) -> None:
    """SIGKILL one after the other; returns when they are replaced and listen."""
    for pid in gateway.workers:
        before, listening = gateway.workers, gateway.log.count(LISTENING)
        os.kill(pid, signal.SIGKILL)
        await_replacement(gateway, before)
        await_listening(gateway, listening + 1)


def restart(gateway: Gateway) -> None:
    """SIGKILL of all of the gateway, and a new one."""
    listening, workers = gateway.log.count(LISTENING), gateway.workers
    gateway.kill9()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "they end with their parent")
    gateway.start()
    await_listening(gateway, listening + len(workers))


def kept_by(gateway: Gateway) -> Path:
    """The file of what the gateway's host knows, once that is what the ledger says."""
    epoch = gateway.rows("SELECT epoch FROM directory_epoch")[0]["epoch"]

    def found() -> Path | None:
        return next(
            (path for path in (gateway.home / "weir-spool").glob("*.memo") if memo.epoch_of(path) == epoch), None
        )

    return eventually(found, "keys and prices are kept")


@pytest.mark.slow
def test_what_starts_while_the_database_is_away_serves_and_what_can_not_waits(tmp_path: Path) -> None:
    """Workers are replaced and the gateway is killed: who pays later is served, and nothing is lost."""
    with (
        PostgresServer() as server,
        fake_upstream() as fake,
        Gateway(
            tmp_path / "gateway", Upstream(fake.url), database_url=server.create_database(), settings={"workers": 2}
        ) as gateway,
    ):
        gateway.weir("customer", "add", "prepaid", "--prepaid")
        gateway.weir("credit", "grant", "prepaid", "5")
        prepaid = gateway.new_key(customer="prepaid")
        later, now = request(gateway.key, body()), request(prepaid, body(max_tokens=1))
        kept = kept_by(gateway)
        assert answers(gateway, later) == {(200, None): ASKED}
        served = ASKED

        server.kill9()
        kill_workers(gateway)
        assert answers(gateway, later) == {(200, None): ASKED}
        assert answers(gateway, now) == {(503, "recording_unavailable"): ASKED}, "no lease, no credit"
        assert gateway.readiness["status"] == "degraded"
        restart(gateway)
        assert "gateway.database_away" in gateway.log
        assert answers(gateway, later) == {(200, None): ASKED}
        served += 2 * ASKED

        kept.unlink()
        kill_workers(gateway)
        assert answers(gateway, later) == {(503, "recording_unavailable"): ASKED}, "no key is known"
        told = gateway.readiness
        assert (told["status"], "no key and no price is known" in told["checks"]["directory"]) == ("not ready", True)
        assert gateway.status("/healthz") == 200

        server.start()
        known = gateway.new_key()
        eventually(lambda: answers(gateway, request(known, body())) == {(200, None): ASKED}, "all workers serve")
        assert answers(gateway, now) == {(200, None): ASKED}
        gateway.await_drained()
        eventually(lambda: not list(kept.parent.glob("*.spool"))[2:], "what the dead left is adopted")
        events = gateway.events()
        assert sum(row["api_key_id"] == gateway.key.id for row in events) == served
        assert sum(row["api_key_id"] == prepaid.id for row in events) == ASKED
        gateway.assert_sums_agree()
        gateway.weir("key", "revoke", gateway.key.id, "--yes")
        eventually(lambda: answers(gateway, later) == {(401, "invalid_api_key"): ASKED}, f"{CUSTOMER}'s key is revoked")
