"""`weir prices`: files as LiteLLM and OpenRouter publish them, read exactly, kept as versions, and beside our own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing.errors import UsageError
from billing.ledger import migrate
from billing.ledger.database import Database
from billing.pricing import market
from tests.acceptance.commands import DONE, NOT_FOUND, USAGE, Weir, runner

MODEL = "qwen3.5-9b"

# Shapes as in LiteLLM's model_prices_and_context_window.json; the first entry is its own example.
LITELLM = """{
  "sample_spec": {"input_cost_per_token": 0.0000, "output_cost_per_token": 0.000, "litellm_provider": "one of ..."},
  "together_ai/Qwen/Qwen3.5-9B": {
    "input_cost_per_token": 5e-08, "output_cost_per_token": 2e-07, "cache_read_input_token_cost": 1.25e-08,
    "output_cost_per_reasoning_token": 3e-07, "litellm_provider": "together_ai", "mode": "chat"},
  "dall-e-3": {"input_cost_per_pixel": 7.629e-08, "output_cost_per_pixel": 0.0, "mode": "image_generation"},
  "gpt-oss-120b": {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7, "max_tokens": 131072}
}"""
# As OpenRouter's /api/v1/models answers.
OPENROUTER = {
    "data": [
        {
            "id": "qwen/qwen3.5-9b",
            "pricing": {
                "prompt": "0.00000004",
                "completion": "0.00000016",
                "request": "0",
                "image": "0",
                "internal_reasoning": "0",
                "input_cache_read": "0.00000001",
            },
        },
        {"id": "qwen/qwen3.5-9b:free", "pricing": {"prompt": "0", "completion": "0"}},
        {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
    ]
}


@pytest.fixture
def weir(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Weir:
    """Run a command line; a cost is set, and the margin is 30 %. The two files are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    opened.close()
    Path("litellm.json").write_text(LITELLM)
    Path("openrouter.json").write_text(json.dumps(OPENROUTER))
    run = runner(capsys)
    assert run("cost", "set", MODEL, "--input", "0.03", "--output", "0.12").code == DONE
    return run


def test_both_files_are_imported_exactly_once(weir: Weir) -> None:
    """By hand: 5e-08 a token is 0.05 per 1M; what is not priced by the token is counted, and the example is none."""
    assert weir("prices", "import", "litellm.json", "--json").json == {
        "source": "litellm",
        "models": 2,
        "new": 2,
        "changed": 0,
        "unchanged": 0,
        "not_priced_by_token": 1,
        "changes": [],
    }
    assert weir("prices", "import", "openrouter.json", "--json").json["models"] == 2
    again = weir("prices", "import", "litellm.json", "--json").json
    assert (again["new"], again["unchanged"]) == (0, 2)
    rows = {row["model"]: row for row in weir("prices", "list", "9b", "--json").json}
    assert list(rows) == ["together_ai/Qwen/Qwen3.5-9B", "qwen/qwen3.5-9b", "qwen/qwen3.5-9b:free"]
    together, router = rows["together_ai/Qwen/Qwen3.5-9B"], rows["qwen/qwen3.5-9b"]
    names = ("input", "cached_input", "output", "reasoning", "request", "currency")
    assert [together[name] for name in names] == ["0.0500", "0.0125", "0.2000", "0.3000", "0", "usd"]
    assert [router[name] for name in names] == ["0.0400", "0.0100", "0.1600", None, "0", "usd"]
    assert len(weir("prices", "list", "--source", "litellm", "--csv").csv) == 2


def test_own_prices_stand_beside_the_market(weir: Weir) -> None:
    """0.039 and 0.156 against 0.05 and 0.2: 22 % cheaper; a variant is another offer; below the cost is said."""
    assert weir("prices", "compare").code == NOT_FOUND
    for name in ("litellm.json", "openrouter.json"):
        assert weir("prices", "import", name).code == DONE
    answer = weir("prices", "compare", "--json")
    assert [(row["source"], row["input_pct"], row["output_pct"], row["note"]) for row in answer.json] == [
        ("litellm", "-22.00", "-22.00", None),
        ("openrouter", "-2.50", "-2.50", None),
    ]
    assert answer.err == ""
    assert weir("customer", "add", "acme").code == DONE
    assert weir("margin", "set", "100%", "--customer", "acme").code == DONE
    dear = weir("prices", "compare", "--customer", "acme", "--source", "litellm", "--json").json
    assert [row["input_pct"] for row in dear] == ["20.00"]
    other = weir("prices", "compare", "--model", MODEL, "--against", "gpt-oss-120b", "--json").json
    assert [(row["market_model"], row["market_output"]) for row in other] == [("gpt-oss-120b", "0.6000")]
    assert weir("cost", "set", MODEL, "--input", "0.045", "--output", "0.12").code == DONE
    told = weir("prices", "compare")
    assert told.code == DONE
    assert "qwen/qwen3.5-9b (openrouter) is offered below your cost" in told.err
    for options, code in (
        (("--against", "x"), USAGE),
        (("--model", "x"), NOT_FOUND),
        (("--model", MODEL, "--against", "x"), NOT_FOUND),
    ):
        assert weir("prices", "compare", *options).code == code


def test_a_change_of_an_imported_price_is_warned_of(weir: Weir) -> None:
    """At the import and in each comparison after it; the past stays, and models that are not ours make no noise."""
    assert weir("prices", "import", "openrouter.json").code == DONE
    Path("openrouter.json").write_text(
        json.dumps(OPENROUTER)
        .replace('"0.00000004"', '"0.00000006"')
        .replace('"request": "0"', '"request": "0.1"')
        .replace('"completion": "0"', '"completion": "0.1"')
    )
    changed = weir("prices", "import", "openrouter.json", "--json")
    assert "qwen/qwen3.5-9b (openrouter) changed: input 0.0400 → 0.0600, request 0 → 0.1 usd" in changed.err
    assert changed.err.count("\n") == 1
    assert changed.json["changed"] == 2
    assert "input 0.0400 → 0.0600" in weir("prices", "compare").err
    assert len(weir("prices", "list", "qwen3.5-9b", "--history", "--json").json) == 4


def test_another_currency_is_not_compared(
    weir: Weir, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both prices are shown, and no percentage between them."""
    monkeypatch.setenv("WEIR_DATABASE__URL", new_database_url())
    monkeypatch.setenv("WEIR_BILLING__CURRENCY", "eur")
    assert weir("db", "upgrade").code == DONE
    assert weir("cost", "set", MODEL, "--input", "0.03", "--output", "0.12").code == DONE
    assert weir("prices", "import", "litellm.json").code == DONE
    (row,) = weir("prices", "compare", "--json").json
    assert (row["currency"], row["market_currency"], row["input_pct"], row["output_pct"]) == ("eur", "usd", None, None)


def test_a_number_is_never_a_float() -> None:
    """Digits that a double would lose stay; half a picounit is rounded up; what is no price is left out."""

    def one(value: str, other: str = "0") -> market.Rates | None:
        first = f'{{"input_cost_per_token": {value}, "output_cost_per_token": {other}}}'
        second = '{"input_cost_per_token": 0, "output_cost_per_token": 0}'
        return market.read(f'{{"m": {first}, "n": {second}}}'.encode()).rates.get("m")

    rates = one("0.123456789012", "1.0000005e-6")
    assert rates is not None
    assert (rates.input, rates.output) == (123_456_789_012, 1_000_001)
    for value in ("-1", "2", "1e999999999", "1e-999999999", '"NaN"', '"x"', "null", "true", "[]", '"1e5"'):
        assert one(value) is None, value
    for content in (
        b"",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"a": 1}',
        b"\xff",
        b'{"m": {"input_cost_per_token": NaN}}',
        b"[" * 100_000,
    ):
        with pytest.raises(UsageError):
            market.read(content)
