"""A little of the fuzzing with every run; `python -m tests.fuzz` does more."""

import json
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from billing.tokens.prompt import count_prompt
from billing.tokens.vocabulary import Vocabulary, load
from proxy.meter import endpoints
from proxy.meter.choose import Plan, is_stream, stream_meter, whole_reader
from proxy.meter.framing import StreamError
from proxy.meter.steps import Outputs
from proxy.relay import asks
from proxy.relay.refusals import Refusal
from tests.fuzz import answered, asked
from tests.fuzz.target import KINDS, Target, running
from tests.fuzz.values import cuts

seeds = st.integers(0, 2**64 - 1)
over_sockets = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
in_process = settings(max_examples=400, deadline=None)


@pytest.fixture(scope="module")
def qwen() -> Vocabulary:
    return load("qwen3.5")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@over_sockets
@given(seed=seeds)
def test_no_answer_of_an_upstream_breaks_the_gateway_or_is_free(target: Target, seed: int) -> None:
    target.answer(Random(seed))


@over_sockets
@given(seed=seeds)
def test_no_body_breaks_the_gateway(target: Target, seed: int) -> None:
    target.request(Random(seed))


@over_sockets
@given(seed=seeds)
def test_nothing_that_is_hardly_http_breaks_the_gateway(target: Target, seed: int) -> None:
    target.http(Random(seed))


@in_process
@given(seed=seeds)
def test_a_body_is_refused_or_forwarded_as_the_value_that_was_admitted(qwen: Vocabulary, seed: int) -> None:
    dice = Random(seed)
    path, raw = asked.mutated(dice, "m")
    ask = asks.read(path, raw)
    if isinstance(ask, Refusal):
        assert 400 <= ask.status < 500
        return
    for kind in KINDS:
        forwarded = asks.forward(ask, "own", reports_each_output=kind == "llamacpp")
        sent = json.loads(forwarded.raw)
        changed = {"model", "stream", "stream_options", "store", "keep_alive"}
        assert {name: part for name, part in sent.items() if name not in changed} == {
            name: part for name, part in ask.body.items() if name not in changed
        }
        limit = ask.limit_on(kind)
        assert limit is None or limit >= 0
    assert count_prompt(qwen, path, ask.body, nfc=True) >= 0


@in_process
@given(seed=seeds)
@example(seed=22519)
def test_a_meter_takes_anything_and_text_is_never_nothing(qwen: Vocabulary, seed: int) -> None:
    """Whatever an upstream sends: a meter raises StreamError or nothing, and text that passed has tokens."""
    dice = Random(seed)
    path = dice.choice(sorted(endpoints.ALL))
    one = dice.choice([one for one in answered.good() if one.path == path])
    body, kind = answered.body_of(dice, one), one.kind.encode()
    if not is_stream(path, kind):
        settled = whole_reader(path).settle(body)
        tally = whole_reader(path).delivered(body)
        assert settled.raw == body
        if answered.texts(path, one.kind, body):
            assert settled.usage.output_tokens if settled.usage is not None else tally.output_tokens(qwen) > 0
        return
    gathers = path not in endpoints.OLLAMA and dice.random() < 0.3
    plan = Plan(path, outputs=Outputs(1, dice.choice([1, 2])), reports_each_output=dice.random() < 0.5, gathers=gathers)
    meter, passed = stream_meter(plan, kind), b""
    try:
        for read in cuts(dice, body) if body else []:
            passed += meter.receive(read)
        settled = meter.finish()
    except StreamError:
        assert meter.delivered().output_tokens(qwen) >= 0
        return
    if answered.texts(path, one.kind, passed + settled.raw) and not (gathers and settled.is_error):
        counted = meter.delivered().output_tokens(qwen)
        assert settled.usage.output_tokens != 0 if settled.usage is not None else counted > 0
    if not gathers:
        assert passed + settled.raw == body
