"""Webhooks about budgets and balances: a receiver on a socket, the jobs of a process, both engines."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from billing.clock import DAY_US, Instant
from billing.config import Billing, Config, Notify
from billing.credit.budget import Span
from billing.ledger import accounts, budgets, schema
from billing.money import Pico
from billing.notify import deliver, signing, watch
from tests.acceptance.harness import Gateway, Upstream, eventually, price
from tests.acceptance.raw import ask, body, request
from tests.acceptance.serving import fake_upstream
from tests.credit_bench import TESTS, USD, CreditBench, credit_bench

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """An HTTP server that keeps what comes, and answers as it is told: 200 unless `answers` has others."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                receiver.came.append(({name.lower(): value for name, value in self.headers.items()}, raw))
                status = receiver.answers.pop(0) if receiver.answers else 200
                if status == 0:  # the answer is lost
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", "0")
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?from=weir"

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The bodies, whose signatures are verified."""
        found = []
        for headers, raw in self.came:
            again = signing.headers(SECRET, headers["webhook-id"], int(headers["webhook-timestamp"]), raw)
            assert headers["webhook-signature"] == again["webhook-signature"]
            assert headers["content-type"] == "application/json"
            found.append(json.loads(raw))
        return found

    def told(self) -> list[tuple[str, object]]:
        """Type and threshold of each message."""
        return [(each["type"], each["data"].get("threshold_pct")) for each in self.messages]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver."""
    made = Receiver()
    yield made
    made.stop()


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


class Job:
    """The background job, on the bench's clock."""

    def __init__(self, bench: CreditBench, receiver: Receiver, low_balance: str = "") -> None:
        self.bench = bench
        notify = Notify(url=receiver.url, secret=SECRET, low_balance=low_balance)
        self.config = Config(notify=notify, billing=Billing(timezone="Europe/Berlin"))

    def run(self) -> int:
        """One round; how many were delivered."""
        watch.look(self.config, self.bench.database, self.bench.at)
        return deliver.deliver(self.config, self.bench.database, self.bench.now)


def customer(bench: CreditBench, name: str, amount: int, *, is_soft: bool = True, span: Span = Span.DAY) -> str:
    """A postpaid customer with a budget."""
    with bench.database.writing() as conn:
        made = accounts.add_customer(conn, name, None, bench.at, TESTS)
        budgets.put(conn, made.id, None, span, Pico(amount), is_soft=is_soft, currency=USD, at=bench.at, actor=TESTS)
    return made.id


def use(bench: CreditBench, customer_id: str, amount: int) -> None:
    """A request."""
    bench.use_plain(customer_id, amount)


def test_each_threshold_is_told_once_in_a_period(bench: CreditBench, receiver: Receiver) -> None:
    acme = customer(bench, "acme", 1_000)
    job = Job(bench, receiver)
    assert job.run() == 0
    use(bench, acme, 499)
    assert job.run() == 0
    use(bench, acme, 1)
    assert (job.run(), job.run()) == (1, 0)
    use(bench, acme, 400)
    assert job.run() == 1
    use(bench, acme, 5_000)
    assert (job.run(), job.run()) == (1, 0)
    assert receiver.told() == [("budget.threshold_reached", pct) for pct in (50, 80, 100)]
    last = receiver.messages[-1]["data"]
    assert (last["customer"], last["customer_id"], last["per"], last["soft"]) == ("acme", acme, "day", True)
    assert (last["used"], last["used_pct"], last["left"]) == ("0.000000005900", "590.0", "0.000000000000")
    bench.at = Instant(bench.at + DAY_US)
    assert job.run() == 0
    use(bench, acme, 600)
    assert job.run() == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == len(receiver.came) == 4


def test_what_is_not_taken_is_sent_again_under_the_same_id_and_later_each_time(
    bench: CreditBench, receiver: Receiver
) -> None:
    """An error, a redirect, an answer that is lost; then it is taken, and never sent again."""
    use(bench, customer(bench, "acme", 100), 60)
    job = Job(bench, receiver)
    receiver.answers = [500, 302, 0]
    assert job.run() == 0
    assert job.run() == 0
    assert len(receiver.came) == 1, "not before its time"
    for seconds in deliver.RETRIES_S[:3]:
        bench.wait(seconds)
        job.run()
        job.run()
    assert len(receiver.came) == 4
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.came}) == 4
    assert len({raw for _, raw in receiver.came}) == 1
    bench.wait(86_400)
    assert job.run() == 0
    assert receiver.messages


@pytest.mark.parametrize(("answer", "attempts"), [(410, 1), (400, len(deliver.RETRIES_S) + 1)])
def test_nobody_is_asked_for_ever(bench: CreditBench, receiver: Receiver, answer: int, attempts: int) -> None:
    use(bench, customer(bench, "acme", 100), 60)
    job = Job(bench, receiver)
    receiver.answers = [answer] * 99
    watch.look(job.config, bench.database, bench.at)
    for _ in range(20):
        deliver.deliver(job.config, bench.database, bench.now)
        bench.wait(86_400)
    assert len(receiver.came) == attempts
    with bench.database.reading() as conn:
        (row,) = conn.execute(schema.notifications.select()).mappings()
    assert (row["state"], row["attempts"], row["last_answer"]) == ("failed", attempts, str(answer))


def test_where_nobody_listens_the_message_waits(bench: CreditBench, receiver: Receiver) -> None:
    use(bench, customer(bench, "acme", 100), 60)
    job = Job(bench, receiver)
    nobody = Config(notify=Notify(url="http://127.0.0.1:1/", secret=SECRET))
    watch.look(job.config, bench.database, bench.at)
    assert deliver.deliver(nobody, bench.database, bench.now) == 0
    bench.wait(5)
    assert job.run() == 1


def test_a_low_balance_is_told_once_until_credit_is_given(bench: CreditBench, receiver: Receiver) -> None:
    job = Job(bench, receiver, low_balance="0.000000000500")
    prepaid = bench.customer()
    bench.grant(prepaid, 1_000)
    bench.use(prepaid, 400)
    assert job.run() == 0
    bench.use(prepaid, 101)
    assert (job.run(), job.run()) == (1, 0)
    bench.grant(prepaid, 1)
    assert job.run() == 0, "it is not below any more"
    bench.use(prepaid, 100)
    assert job.run() == 1
    assert [each["type"] for each in receiver.messages] == ["credit.low", "credit.low"]
    assert receiver.messages[0]["data"]["balance"] == "0.000000000499"


def test_a_gateway_tells_of_its_budgets_and_of_what_it_refuses(
    receiver: Receiver, tmp_path: Path, database_url: str
) -> None:
    """The processes, as an operator runs them: thresholds, a refusal, and what `weir usage` says."""
    with fake_upstream() as fake, Gateway(tmp_path, Upstream(fake.url), database_url=database_url) as gateway:
        text = gateway.config_path.read_text(encoding="utf-8")
        notify = f'\n[notify]\nurl = "{receiver.url}"\nsecret = "{SECRET}"\n'
        gateway.config_path.write_text(text + notify, encoding="utf-8")
        amount = f"0.{price(7, 3) * 200:012d}"
        gateway.weir("customer", "set", "acme", "--budget", amount, "--per", "month")
        gateway.restart()
        content = body(max_tokens=3)

        def is_refused() -> bool:
            answer = ask(gateway, request(gateway.key, content))
            return answer.status == 402 and answer.code == "budget_exceeded"

        eventually(is_refused, "it is used up")
        wanted = {("budget.threshold_reached", 50), ("budget.exhausted", None)}
        eventually(lambda: wanted <= set(receiver.told()), "all is told")
        (row,) = json.loads(gateway.weir("usage", "--json"))
        assert (row["budget"], row["budget_per"]) == (amount, "month")
        assert 50 <= float(row["budget_used_pct"]) <= 100
        assert "budget_used_pct" in gateway.weir("usage", "--csv")
        told = receiver.told()
        assert len(told) == len(set(told))
