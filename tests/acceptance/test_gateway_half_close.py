"""A client that half-closes has every byte that Weir sent it, and pays for those alone."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.harness import Gateway, eventually
from tests.acceptance.raw import Raw, body, request
from tests.acceptance.serving import fake_upstream, gateway_before, next_record, script_chat
from tests.emulators.upstream import Await, FakeUpstream, Gate, chat_chunk, event, sse_head


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_before(fake, tmp_path_factory.mktemp("gateway")) as running:
        yield running
        running.assert_no_failure()


def test_what_comes_after_the_goodbye_is_not_billed(gateway: Gateway, fake: FakeUpstream) -> None:
    """The FIN and more of the answer wait for the gateway at once, as on a busy machine: it is stopped meanwhile.

    Found by the randomised requests: what came between the FIN and the end of the connection was billed.
    """
    for _ in range(5):
        gate = Gate()
        late = [event(chat_chunk(" late")) for _ in range(9)]
        before = script_chat(fake, sse_head(), event(chat_chunk("Hello")), Await(gate), *late, Await(Gate()))
        with Raw(gateway) as client:
            client.send(request(gateway.key, body(stream=True)))
            answer = client.head()
            assert b'"Hello"' in client.chunk()
            record = next_record(fake, before)
            sent = len(record.sent)
            os.kill(gateway.pid, signal.SIGSTOP)
            try:
                client.half_close()
                gate.open()
                whole = sent + sum(len(step.data) for step in late)
                eventually(lambda record=record, whole=whole: len(record.sent) >= whole, "it is all sent")  # type: ignore[misc]
            finally:
                os.kill(gateway.pid, signal.SIGCONT)
            got = client.rest()
        row = gateway.event(answer.id)
        assert (row["outcome"], row["count_source"]) == ("client_closed", "counted")
        assert row["output_tokens"] == 1 + got.count(b'" late"')
