"""`weir credit topup-link`, `auto` and `topups`, as an admin types them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import clock
from billing.cli import app, credit
from billing.clock import SECOND_US
from tests.acceptance.commands import DONE, NOT_FOUND, USAGE, Weir, at_stripe, runner
from tests.emulators.stripe_double import StripeDouble


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    """A Stripe of the test's own, at the clock's time; nothing may have broken its contract."""
    with StripeDouble(now=clock.now() // SECOND_US) as running:
        yield running
        assert running.violations == []


@pytest.fixture
def weir(
    double: StripeDouble,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Weir:
    """`weir` on a fresh database with a prepaid customer; nothing was set up at Stripe, for credit needs nothing."""
    at_stripe(monkeypatch, tmp_path, database_url, double)
    if "credit" not in app.root.commands:
        app.root.add_command(credit.credit)
    run = runner(capsys)
    assert run("db", "upgrade").code == DONE
    assert run("customer", "add", "acme", "--prepaid", "--email", "billing@acme.example").code == DONE
    return run


def test_a_link_is_printed_for_people_and_told_to_programs(weir: Weir, double: StripeDouble) -> None:
    """People get the address alone, ready to be sent."""
    answer = weir("credit", "topup-link", "acme", "25")
    assert answer.code == DONE
    (session,) = double.objects("checkout.session")
    assert answer.out == f"{session['url']}\n"
    assert (session["amount_total"], session["customer_email"]) == (2_500, "billing@acme.example")
    told = weir("credit", "topup-link", "acme", "0.50", "--json").json
    session = double.objects("checkout.session")[1]
    assert (told["url"], told["checkout_session"], told["topup"]) == (
        session["url"],
        session["id"],
        session["metadata"]["weir_topup"],
    )
    assert (told["amount"], told["currency"], told["state"]) == ("0.500000000000", "usd", "open")
    assert [each["amount"] for each in weir("credit", "topups", "acme", "--json").json] == [
        "0.500000000000",
        "25.000000000000",
    ]


@pytest.mark.parametrize("amount", ["0", "-5", "0.001", "1000000", "ten"])
def test_what_no_card_can_pay_is_refused_before_stripe_is_asked(weir: Weir, double: StripeDouble, amount: str) -> None:
    assert weir("credit", "topup-link", "acme", "--", amount).code == USAGE
    assert double.objects("checkout.session") == []
    assert weir("credit", "topups", "acme", "--json").json == []


def test_an_unknown_customer_pays_nothing(weir: Weir) -> None:
    assert weir("credit", "topup-link", "nobody", "5").code == NOT_FOUND


def test_an_automatic_top_up_is_set_shown_and_switched_off(weir: Weir) -> None:
    told = weir("credit", "auto", "acme", "--below", "5", "--amount", "20", "--json").json
    assert (told["below"], told["amount"], told["has_saved_card"]) == (
        "5.000000000000 usd",
        "20.000000000000 usd",
        False,
    )
    assert weir("credit", "auto", "acme", "--json").json == told
    assert weir("credit", "auto", "acme", "--below", "5").code == USAGE
    assert weir("credit", "auto", "acme", "--off", "--json").json["auto"] is False
