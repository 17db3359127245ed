"""The Stripe double as a process of its own, and its control API, as `make demo` uses them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.contract.stripe_double_support import NOW, World, client_of, receiving, world
from tests.emulators.stripe_double import StripeDouble

ROOT = Path(__file__).parents[2]


def control(url: str, method: str, path: str, body: Any = None) -> Any:
    """One control request."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/_double/{path}", data, method=method)) as response:
        return json.loads(response.read())


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


def test_the_process_serves_the_sdk_and_is_controlled_over_http(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [
        sys.executable,
        "-m",
        "tests.emulators.stripe_double",
        "--port",
        "0",
        "--port-file",
        str(port_file),
    ]
    process = subprocess.Popen([*command, "--api-key", "sk_test_demo"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        assert announced["url"].endswith(f":{port_file.read_text()}")
        client = stripe.StripeClient("sk_test_demo", base_addresses={"api": announced["url"]})
        customer = client.v1.customers.create({"name": "Acme"})
        assert abs(customer.created - time.time()) < 60
        state = control(announced["url"], "GET", "state")
        assert state["objects"]["customer"] == 1
        assert state["violations"] == []
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_faults_clock_totals_and_webhooks_are_set_over_http(w: World) -> None:
    url = w.double.url
    control(url, "POST", "faults", {"kind": "rate_limited", "path": "/v1/billing/*", "times": 1})
    with pytest.raises(stripe.RateLimitError):
        w.use("25", "e1")
    w.use("25", "e1")
    assert control(url, "GET", "faults")[0]["hits"] == 1
    assert control(url, "GET", f"totals?customer={w.customer}") == {"total": "25", "events": 1}
    assert control(url, "GET", f"totals?end={NOW}") == {"total": "0", "events": 0}
    assert control(url, "POST", "clock", {"advance_s": 90}) == {"now": NOW + 90}
    with receiving() as receiver:
        target = control(url, "POST", "webhooks", {"url": receiver.url, "events": ["invoice.*"], "secret": "whsec_x"})
        assert target["secrets"] == [["whsec_x", None]]
        w.subscribe()
        control(url, "POST", "do/fail_invoice", {"customer": w.customer, "amount": 700})
        assert control(url, "POST", "do/wait_delivered") is True
        body, signature = receiver.received[-1]
        assert w.client.construct_event(body, signature, "whsec_x").type == "invoice.payment_failed"
    assert control(url, "POST", "policy", {"charge_minimum": 1})["charge_minimum"] == 1
    assert [each["total"] for each in control(url, "GET", "objects/invoice")] == [0, 700]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "faults", {"kind": "no such"}),
        ("POST", "do/stop", {}),
        ("GET", "nothing", None),
        ("POST", "policy", {"colour": 1}),
        ("POST", "clock", {"move_to": 1}),
        ("POST", "do/pay_invoice", {"invoice_id": "in_no"}),
    ],
)
def test_a_control_request_without_sense_is_400_with_a_sentence(w: World, method: str, path: str, body: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        control(w.double.url, method, path, body)
    with refused.value as answer:
        assert answer.code == 400
        assert json.loads(answer.read())["error"]


def test_without_a_start_the_clock_follows_the_machine_and_can_be_moved() -> None:
    with StripeDouble() as double:
        before = double.clock.now()
        assert abs(before - time.time()) < 5
        assert 86_400 <= double.clock.advance(days=1) - before < 86_405


def test_many_threads_push_thousands_of_events_and_each_counts_once(w: World) -> None:
    """Eight lanes of 150 events, each with its own customer: exact totals, and fast enough for big tests."""
    customers = [w.client.v1.customers.create({"name": f"c{number}"}).id for number in range(8)]

    def push(customer: str) -> None:
        lane = World(w.double, client_of(w.double), customer, w.meter, w.product, w.price)
        for number in range(150):
            lane.use(str(number), f"{customer}-{number}")

    threads = [threading.Thread(target=push, args=(customer,)) for customer in customers]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [w.double.meter_total(customer) for customer in customers] == [11_175] * 8
    assert time.monotonic() - started < 30


def test_two_processes_worth_of_clients_see_one_account(w: World) -> None:
    other = client_of(w.double)
    assert other.v1.customers.retrieve(w.customer).name == "Acme"
    other.v1.customers.update(w.customer, {"metadata": {"weir": "1"}})
    fetched = w.client.v1.customers.retrieve(w.customer)
    assert fetched.metadata is not None
    assert fetched.metadata["weir"] == "1"
