"""`weir audit tokens`: a server that reports wrongly is caught, an honest llama.cpp is not."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from billing.cli import app
from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.acceptance.raw import CHAT, COMPLETIONS, ask, body, request
from tests.acceptance.serving import fake_upstream, plain, streamed
from tests.emulators.upstream import FakeUpstream
from tests.inference.llama_server import LlamaServer
from tests.inference.script import TOOL_CALL_TOKEN, ScriptedModel

ALL: Final = {"sample": "100%"}
TEXT: Final = "one two three four five six seven eight nine ten eleven twelve"
TEXT_TOKENS: Final = 12 + 1
"""A token a word, and the end."""
HI: Final = 11


def weir(gateway: Gateway, *words: str) -> tuple[int, str]:
    """The exit code of a command and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = app.run(["--config", str(gateway.config_path), *words])
    return code, out.getvalue()


def audited(gateway: Gateway, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code of `weir audit tokens --json` and its rows."""
    code, out = weir(gateway, "audit", "tokens", "--json", *options)
    return code, json.loads(out)


def rows_when(gateway: Gateway, samples: int, model: str = MODEL) -> tuple[int, dict[str, Any]]:
    """The exit code and the one row of a model, once it has so many samples."""

    def found() -> tuple[int, dict[str, Any]] | None:
        code, rows = audited(gateway, "--model", model)
        return (code, rows[0]) if rows and rows[0]["samples"] >= samples else None

    return eventually(found, f"{samples} samples are in the ledger")


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


class Case(NamedTuple):
    """What a server reports, and how it is judged; `code` is that of `weir audit tokens`."""

    prompt: int
    completion: int
    input_verdict: str
    output_verdict: str
    code: int
    is_streamed: bool = False


CASES: Final = (
    Case(HI, TEXT_TOKENS, "exact", "exact", 0),
    Case(HI + 5, TEXT_TOKENS + 1, "within slack", "within slack", 0),
    Case(2 * HI, TEXT_TOKENS, "over-reports", "exact", 1),
    Case(HI, 2 * TEXT_TOKENS, "exact", "over-reports", 1),
    Case(1, TEXT_TOKENS, "under-reports", "exact", 1),
    Case(HI, TEXT_TOKENS // 2, "exact", "under-reports", 1),
)


def test_a_server_is_judged_by_its_counts(database_url: str, tmp_path: Path) -> None:
    """Far below what makes an anomaly of a single event; the sums say it. A server, and a model, for each case."""
    cases = {
        f"qwen3.5-m{at}": case for at, case in enumerate((*CASES, *(each._replace(is_streamed=True) for each in CASES)))
    }
    with contextlib.ExitStack() as stack:
        fakes = {model: stack.enter_context(fake_upstream()) for model in cases}
        servers = [Upstream(fake.url, f"at-{model}", {model: model}) for model, fake in fakes.items()]
        gateway = stack.enter_context(Gateway(tmp_path / "home", *servers, database_url=database_url, audit=ALL))
        for model, case in cases.items():
            counts = {"prompt": case.prompt, "completion": case.completion}
            script = streamed(TEXT, **counts) if case.is_streamed else (plain(case.prompt, case.completion, TEXT),)
            fakes[model].always(CHAT, *script)
            for _ in range(3):
                assert ask(gateway, request(gateway.key, body(stream=case.is_streamed, model=model))).status == 200
        for model, case in cases.items():
            judged(gateway, model, case)
        metrics = ask(gateway, request(None, path="/metrics", method="GET")).body.decode()
        for verdict in ("exact", "over-reports", "under-reports"):
            assert f'weir_audited_total{{verdict="{verdict}"}} ' in metrics
        assert audited(gateway, "--model", "another") == (0, [])
        assert audited(gateway, "--until", "2026-01-01") == (0, [])
        assert audited(gateway, "--since", "now")[1] != [], "the whole day counts"
        fakes["qwen3.5-m0"].always(CHAT, plain(prompt=90_000, completion=9_000))
        assert ask(gateway, request(gateway.key, body(model="qwen3.5-m0"))).status == 200
        ended, row = rows_when(gateway, 4, "qwen3.5-m0")
        assert (ended, row["anomalies"]) == (1, {"input_implausible": 1, "output_mismatch": 1})
        assert "input_implausible" in weir(gateway, "audit", "tokens")[1]


def judged(gateway: Gateway, model: str, case: Case) -> None:
    """The server of a model has its verdicts."""
    ended, row = rows_when(gateway, 3, model)
    assert (row["model"], row["upstream"], row["kind"], row["samples"]) == (model, f"at-{model}", "openai", 3)
    assert (row["input_reported"], row["input_counted"]) == (3 * case.prompt, 3 * HI)
    assert (row["output_reported"], row["output_counted"]) == (3 * case.completion, 3 * TEXT_TOKENS)
    assert (row["input_verdict"], row["output_verdict"], ended) == (*case[2:4], case.code)
    assert row["anomalies"] == {}


def test_nothing_is_sampled_where_that_is_configured(tmp_path: Path, fake: FakeUpstream) -> None:
    with Gateway(tmp_path / "home", Upstream(fake.url), audit={"sample": "0"}) as gateway:
        assert ask(gateway, request(gateway.key)).status == 200
        gateway.stop()
        assert audited(gateway) == (0, [])


def test_what_is_sampled_survives_an_orderly_stop_and_no_text_is_stored(tmp_path: Path, fake: FakeUpstream) -> None:
    fake.always(CHAT, plain(HI, 3, "a zebra answer"))
    with Gateway(tmp_path / "home", Upstream(fake.url), audit=ALL) as gateway:
        assert ask(gateway, request(gateway.key, body("a zebra question"))).status == 200
        gateway.stop()
        assert audited(gateway)[1][0]["samples"] == 1
        stored = b"".join(path.read_bytes() for path in gateway.home.glob("*") if path.is_file())
        assert b"zebra" not in stored


FORECAST: Final = {"type": "function", "function": {"name": ScriptedModel.tool, "parameters": {"type": "object"}}}
LOAD: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (CHAT, body("Say hello.")),
    (CHAT, body("Say hello.", stream=True)),
    (CHAT, body("Say hello.", n=3)),
    (CHAT, body("Grüße, 你好, e\u0301cole 👩‍👩‍👧 <|im_end|>", n=2, stream=True)),
    (CHAT, body("hi", max_tokens=5)),
    (CHAT, body("hi", chat_template_kwargs={"enable_thinking": False}, stream=True)),
    (CHAT, body("hi", logprobs=True, stream=True)),
    (CHAT, body("hi", reasoning_format="none")),
    (COMPLETIONS, {"model": MODEL, "prompt": ["Hello", "This is"], "max_tokens": 4}),
    (COMPLETIONS, {"model": MODEL, "prompt": "Hello", "max_tokens": 7, "stream": True}),
    ("/v1/responses", {"model": MODEL, "input": "Say hello."}),
    ("/v1/messages", {"model": MODEL, "max_tokens": 99, "messages": [{"role": "user", "content": "Say hello."}]}),
)


@pytest.fixture(scope="module")
def real(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("real"), Upstream(llama.url, "llama"), audit=ALL) as gateway:
        yield gateway


def test_an_honest_llamacpp_has_no_drift_at_all(real: Gateway) -> None:
    """Every protocol, several outputs, all scripts: not one token of prompt or output is counted otherwise."""
    for path, content in LOAD:
        assert ask(real, request(real.key, content, path=path)).status == 200
    code, row = rows_when(real, len(LOAD))
    assert (row["kind"], row["input_samples"], row["output_samples"]) == ("llamacpp", len(LOAD), len(LOAD))
    assert row["version"], "llama.cpp says its build"
    assert (row["input_drift"], row["input_worst"], row["input_verdict"]) == (0, [0, 0], "exact")
    assert (row["output_drift"], row["output_worst"], row["output_verdict"]) == (0, [0, 0], "exact")
    assert (code, row["anomalies"]) == (0, {})


def test_tools_and_stop_texts_stay_within_what_they_hide(real: Gateway) -> None:
    contents = (
        body("hi", tools=[FORECAST], logit_bias={str(TOOL_CALL_TOKEN): 20}),
        body("hi", tools=[FORECAST], logit_bias={str(TOOL_CALL_TOKEN): 20}, stream=True),
        body("hi", stop=["tiny"]),
    )
    before = (audited(real)[1] or [{"samples": 0}])[0]["samples"]
    for content in contents:
        assert ask(real, request(real.key, content)).status == 200
    code, row = rows_when(real, before + len(contents))
    assert (code, row["input_verdict"], row["output_verdict"]) == (0, "exact", "within slack")
    assert row["output_outliers"] == 0
