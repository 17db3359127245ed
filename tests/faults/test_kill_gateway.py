"""kill -9 under load, of the gateway and of PostgreSQL: what clients received whole is in the ledger once, exactly."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.acceptance.raw import ask, request
from tests.faults.load import Load, Seen, assert_recorded, stand_in
from tests.support.postgres import PostgresServer

ANSWERS_BEFORE_KILL = 150
STOPPED_ANSWERING_S = 15


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """A model server that is never the slowest."""
    with stand_in(tmp_path_factory.mktemp("bench")) as url:
        yield Upstream(url, models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"})


def kill_again_and_again(gateway: Gateway, rounds: int, seed: int) -> list[Seen]:
    """Load it, kill it in the middle, start it again; what was seen in each round."""
    chance = random.Random(seed)
    all_seen = []
    for number in range(rounds):
        with Load(gateway, seed=seed + number) as load:
            load.wait_for(ANSWERS_BEFORE_KILL)
            time.sleep(chance.random() / 10)  # the moment of the kill is anywhere in a batch
            gateway.kill9()
            time.sleep(0.1)
            whole = list(load.seen.whole)
            gateway.start()
            load.wait_for(20)
        assert load.seen.broken > 0, "the kill came in the middle"
        assert_recorded(gateway, load.seen.whole)
        assert len(load.seen.whole) > len(whole)
        all_seen.append(load.seen)
    return all_seen


def test_a_killed_gateway_loses_no_answer_that_it_gave(database_url: str, upstream: Upstream, tmp_path: Path) -> None:
    with Gateway(tmp_path / "gateway", upstream, database_url=database_url) as gateway:
        seen = kill_again_and_again(gateway, rounds=2, seed=11)
        events = assert_recorded(gateway, [one for round_ in seen for one in round_.whole])
        assert {row["outcome"] for row in events} <= {"completed", "client_closed"}


def await_replacement(gateway: Gateway, before: list[int]) -> None:
    """Return once there is a worker that was not there before."""
    eventually(lambda: len(set(gateway.workers) - set(before)) == 1, "it is replaced")


def test_a_killed_worker_is_replaced_and_loses_no_answer_that_it_gave(upstream: Upstream, tmp_path: Path) -> None:
    with Gateway(tmp_path / "gateway", upstream, settings={"workers": 2}) as gateway:
        with Load(gateway) as load:
            for _ in range(2):
                load.wait_for(ANSWERS_BEFORE_KILL)
                before = gateway.workers
                os.kill(before[0], signal.SIGKILL)
                load.wait_for(ANSWERS_BEFORE_KILL)
                await_replacement(gateway, before)
        assert_recorded(gateway, load.seen.whole)
        assert gateway.stop() == 0
        gateway.start()
        workers = gateway.workers
        assert len(workers) == 2
        gateway.kill9()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers end with their parent")


@pytest.mark.slow
def test_a_gateway_killed_many_times_loses_no_answer_that_it_gave(
    database_url: str, upstream: Upstream, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "gateway", upstream, database_url=database_url) as gateway:
        seen = kill_again_and_again(gateway, rounds=12, seed=101)
        assert_recorded(gateway, [one for round_ in seen for one in round_.whole])


def lose_postgres(gateway: Gateway, server: PostgresServer, *, away_s: float) -> Seen:
    """Kill PostgreSQL under load, and start it again after a while; what the clients saw."""
    with Load(gateway) as load:
        load.wait_for(ANSWERS_BEFORE_KILL)
        server.kill9()
        time.sleep(away_s)
        server.start()
        gateway.await_drained()
        load.wait_for(ANSWERS_BEFORE_KILL)
    gateway.await_drained()
    return load.seen


def test_a_killed_database_costs_no_answer_that_was_given(upstream: Upstream, tmp_path: Path) -> None:
    """Requests are recorded in the spool; none is answered whole and not recorded, and none twice."""
    with PostgresServer() as server:
        url = server.create_database()
        with Gateway(tmp_path / "gateway", upstream, database_url=url) as gateway:
            for away_s in (0.0, 1.0):
                seen = lose_postgres(gateway, server, away_s=away_s)
                assert not seen.refused, "nobody notices"
                assert_recorded(gateway, seen.whole)


@pytest.mark.slow
def test_two_gateways_on_one_ledger_lose_nothing_when_one_is_killed(
    database_url: str, upstream: Upstream, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "one", upstream, database_url=database_url) as one:
        other = Gateway(tmp_path / "other", upstream, database_url=database_url)
        other.home.mkdir()
        other.write_config()
        other.share_key(one.key)
        other.start()
        try:
            for seed in range(4):
                with Load(one, seed=seed) as load, Load(other, seed=100 + seed) as second:
                    load.wait_for(ANSWERS_BEFORE_KILL)
                    second.wait_for(ANSWERS_BEFORE_KILL)
                    other.kill9()
                    load.wait_for(ANSWERS_BEFORE_KILL)
                    other.start()
                    second.wait_for(20)
                assert_recorded(one, [*load.seen.whole, *second.seen.whole])
                assert not load.seen.broken, "the other gateway's end is not felt here"
        finally:
            other.end()
        other.assert_no_failure()


@pytest.mark.slow
def test_a_database_that_stays_away_is_not_noticed_and_nothing_is_given_away(
    upstream: Upstream, tmp_path: Path
) -> None:
    with PostgresServer() as server:
        url = server.create_database()
        with Gateway(tmp_path / "gateway", upstream, database_url=url) as gateway:
            seen = lose_postgres(gateway, server, away_s=STOPPED_ANSWERING_S)
            assert not seen.refused
            assert_recorded(gateway, seen.whole)


def test_a_gateway_does_not_start_without_its_database_and_says_so(upstream: Upstream, tmp_path: Path) -> None:
    with PostgresServer() as server:
        gateway = Gateway(tmp_path / "gateway", upstream, database_url=server.create_database())
        gateway.set_up()
        server.kill9()
        process = gateway.spawn()
        assert process.wait(30) == 1
        gateway.forget()
        (line,) = gateway.log.splitlines()
        assert line.startswith("weir: the database does not answer")
        server.start()
        with_database = gateway
        with_database.start()
        try:
            answer = ask(gateway, request(gateway.key))
            assert gateway.event(answer.id)["outcome"] == "completed"
        finally:
            gateway.end()
        gateway.assert_no_failure()
