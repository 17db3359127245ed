"""`[gateway] workers`: several processes on one port and one ledger; a dead one is replaced, all stop together."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.emulators.upstream import FakeUpstream, json_answer

CHAT = "/v1/chat/completions"
WORKERS = 2
REQUESTS = 40
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@pytest.fixture
def gateway(tmp_path: Path, database_url: str) -> Iterator[Gateway]:
    """Two workers on each engine."""
    with FakeUpstream() as fake:
        fake.always(CHAT, json_answer(ANSWER))
        upstream = Upstream(fake.url)
        with Gateway(tmp_path, upstream, database_url=database_url, settings={"workers": WORKERS}) as running:
            yield running


def workers_of(gateway: Gateway) -> set[int]:
    """The worker processes, by the kernel's account."""
    tasks = Path(f"/proc/{gateway.pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def ask(gateway: Gateway) -> str | None:
    """Send one request on a connection of its own; its id if the answer came whole."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        connection.request("POST", CHAT, body, {"authorization": gateway.key.header})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return answer.headers["x-request-id"] if answer.status == http.client.OK else None


def test_workers_share_a_port_and_a_ledger_and_a_dead_one_is_replaced(gateway: Gateway) -> None:
    """What came whole is recorded once, though a worker is killed meanwhile; all end at SIGTERM, with code 0."""
    eventually(lambda: len(workers_of(gateway)) == WORKERS, "the workers run")
    first = workers_of(gateway)
    received = [ask(gateway) for _ in range(REQUESTS)]
    os.kill(min(first), signal.SIGKILL)
    received += [ask(gateway) for _ in range(REQUESTS)]
    eventually(lambda: len(workers_of(gateway)) == WORKERS, "the dead worker is replaced")
    replaced = workers_of(gateway)
    assert min(first) not in replaced
    received += [ask(gateway) for _ in range(REQUESTS)]

    whole = [answer for answer in received if answer is not None]
    recorded = [row["id"] for row in gateway.rows("SELECT id FROM usage_events")]
    assert len(whole) > 2 * REQUESTS
    assert sorted(set(whole) - set(recorded)) == []
    assert len(recorded) == len(set(recorded))
    counted = gateway.rows("SELECT SUM(requests) AS n, SUM(output_tokens) AS tokens FROM usage_hourly")[0]
    assert (int(counted["n"]), int(counted["tokens"])) == (len(recorded), 2 * len(recorded))
    assert gateway.stop() == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in replaced), "no worker is left")
