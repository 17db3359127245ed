"""The database goes away under load: nobody notices, nothing is given away, nothing is recorded twice (I1, I3)."""

import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from billing import clock
from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually, price
from tests.acceptance.raw import ask, body, request
from tests.acceptance.serving import fake_upstream
from tests.credit_bench import CreditBench
from tests.faults.load import Load, assert_recorded, stand_in
from tests.support.postgres import PostgresServer

ANSWERS = 100


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """A model server that is never the slowest."""
    with stand_in(tmp_path_factory.mktemp("bench")) as url:
        yield Upstream(url, models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"})


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to be ended."""
    with PostgresServer() as running:
        yield running


def test_a_gateway_that_dies_while_the_database_is_away_loses_nothing(
    server: PostgresServer, upstream: Upstream, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "gateway", upstream, database_url=server.create_database()) as gateway:
        with Load(gateway) as load:
            load.wait_for(ANSWERS)
            server.kill9()
            load.wait_for(ANSWERS)
            assert gateway.readiness["status"] == "degraded"
            gateway.kill9()
            server.start()
            gateway.start()
            load.wait_for(ANSWERS)
        assert not load.seen.refused
        eventually(lambda: not list((gateway.home / "weir-spool").glob("*.spool"))[1:], "the dead one's is adopted")
        gateway.await_drained()
        assert_recorded(gateway, load.seen.whole)


def test_a_database_that_says_nothing_is_away(server: PostgresServer, upstream: Upstream, tmp_path: Path) -> None:
    """Its host is there and takes what is sent (SIGSTOP): no error ever comes."""
    with Gateway(tmp_path / "gateway", upstream, database_url=server.create_database()) as gateway:
        with Load(gateway) as load:
            load.wait_for(ANSWERS)
            stopped = server.processes()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                load.wait_for(ANSWERS)
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
            load.wait_for(ANSWERS)
        gateway.await_drained()
        assert not load.seen.refused
        assert_recorded(gateway, load.seen.whole)


def test_prepaid_customers_go_on_with_what_is_leased_and_no_further(server: PostgresServer, tmp_path: Path) -> None:
    with (
        fake_upstream() as fake,
        Gateway(tmp_path / "gateway", Upstream(fake.url), database_url=server.create_database()) as gateway,
    ):
        customer = gateway.weir("customer", "add", "prepaid", "--prepaid", "--json").split('"id": "')[1].split('"')[0]
        key = gateway.new_key(customer="prepaid")
        small = request(key, body(max_tokens=1))
        gateway.weir("credit", "grant", "prepaid", f"{Decimal(40 * price(2_000, 1)).scaleb(-12):f}")
        assert ask(gateway, small).status == 200
        server.kill9()
        answers = [ask(gateway, small)]
        while answers[-1].status == 200:
            answers.append(ask(gateway, small))
        assert len(answers) > 2, "the lease covers some"
        assert answers[-1].code == "recording_unavailable"
        assert ask(gateway, request(gateway.key)).status == 200, "others are not concerned"
        server.start()
        gateway.await_drained()
        paid = [row["amount_pico"] for row in gateway.events() if row["customer_id"] == customer]
        assert len(paid) == len(answers)
        assert sum(paid) <= 40 * price(2_000, 1)
        eventually(lambda: ask(gateway, small).status == 200, "and on again")
        bench = CreditBench(gateway.database_url)
        bench.at = clock.now()
        bench.audit(customer)
        bench.database.close()
