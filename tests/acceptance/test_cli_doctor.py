"""`weir doctor` says of each thing that is wrong what it is and what to do, and nothing of what is well."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.cli import app
from tests.acceptance.commands import at_stripe
from tests.acceptance.harness import MODEL, UNPRICED, Gateway, Upstream
from tests.acceptance.serving import fake_upstream
from tests.emulators.stripe_double import StripeDouble
from tests.emulators.upstream import FakeUpstream

Examine = Callable[[], tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


def examined(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and each result by its check."""
    capsys.readouterr()
    code = app.run(["--config", str(gateway.config_path), "doctor", "--json"])
    return code, {row["check"]: row for row in json.loads(capsys.readouterr().out)}


def made(home: Path, *upstreams: Upstream, database_url: str | None = None) -> Gateway:
    gateway = Gateway(home, *upstreams, database_url=database_url)
    gateway.set_up()
    return gateway


def test_a_sound_installation_has_nothing_wrong(
    fake: FakeUpstream, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = examined(made(tmp_path / "home", Upstream(fake.url), database_url=database_url), capsys)
    assert code == 0, found
    assert {row["state"] for row in found.values()} <= {"ok", "warn"}
    names = {"configuration", "database", "clock", "upstream local", f"price {MODEL}", f"tokenizer {MODEL}"}
    assert names | {"spool", "disk of spool", "stripe", "outbox"} <= found.keys()


def test_each_fault_is_named_with_its_remedy(
    fake: FakeUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = Upstream("http://127.0.0.1:1", "dead", {UNPRICED: UNPRICED})
    gateway = made(tmp_path / "home", Upstream(fake.url), dead)
    (gateway.home / "weir-spool").write_text("in the way")
    gateway.config_path.write_text(
        gateway.config_path.read_text(encoding="utf-8") + f'[tokenizers]\n"{UNPRICED}" = "missing.tiktoken"\n'
    )
    code, found = examined(gateway, capsys)
    assert code == 1
    wrong = {name: row["remedy"] for name, row in found.items() if row["state"] == "fail"}
    assert set(wrong) >= {"upstream dead", f"price {UNPRICED}", f"tokenizer {UNPRICED}", "spool"}
    assert all(wrong.values()), "each says what to do"


def test_stripe_is_asked_whether_it_is_set_up(
    fake: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No meter, no webhook secret, a key that Stripe does not know, a Stripe that fails; and all well."""
    with StripeDouble() as double:
        gateway = made(tmp_path / "home", Upstream(fake.url))
        at_stripe(monkeypatch, gateway.home, gateway.database_url, double)
        monkeypatch.setenv("WEIR_STRIPE__ENABLED", "true")

        def stripe() -> tuple[int, dict[str, tuple[str, str, str]]]:
            code, found = examined(gateway, capsys)
            told = {name: (row["state"], row["found"], row["remedy"]) for name, row in found.items()}
            return code, {name: row for name, row in told.items() if name.startswith("stripe")}

        assert stripe() == (
            1,
            {
                "stripe": ("fail", "answers, 0 meters", "run `weir stripe setup`"),
                "stripe webhook": ("fail", "no secret: events are refused", "set STRIPE_WEBHOOK_SECRET"),
            },
        )
        gateway.weir("stripe", "setup")
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_one,whsec_two")
        assert stripe() == (
            0,
            {"stripe": ("ok", "answers, 1 meters", ""), "stripe webhook": ("ok", "2 secrets", "")},
        )
        monkeypatch.setenv("STRIPE_API_KEY", "sk_test_of_somebody_else")
        code, found = stripe()
        assert (code, found["stripe"][0]) == (1, "fail")
        assert "sk_test_of_somebody_else" not in found["stripe"][1]
        assert found["stripe"][2], "it says what to do"
        monkeypatch.delenv("STRIPE_API_KEY")
        assert stripe() == (
            0,
            {"stripe": ("warn", "no key: nothing is sent", "set STRIPE_API_KEY, or stripe.enabled = false")},
        )


def test_a_database_that_is_away_is_one_fault(
    fake: FakeUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(tmp_path, Upstream(fake.url), database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    gateway.write_config()
    code, found = examined(gateway, capsys)
    assert code == 1
    assert [name for name, row in found.items() if row["state"] == "fail"] == ["database"]


def test_a_database_on_no_schema_says_which_command_makes_one(
    fake: FakeUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(tmp_path, Upstream(fake.url))
    gateway.write_config()
    _, found = examined(gateway, capsys)
    assert "weir db upgrade" in found["database"]["found"]
