"""Run `weir` in this process, and look at what it came to."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from billing.cli import app, customer, db, init, key, report, trace, usage
from tests.emulators.stripe_double import StripeDouble

DONE, FAILED, USAGE, NOT_FOUND, REFUSED = range(5)


@dataclass(frozen=True)
class Answer:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as JSON; the command must have succeeded."""
        assert self.code == DONE, self.err
        return json.loads(self.out)

    @property
    def csv(self) -> list[dict[str, str]]:
        """The output as CSV."""
        assert self.code == DONE, self.err
        return list(csv.DictReader(io.StringIO(self.out)))


Weir = Callable[..., Answer]


def at_stripe(monkeypatch: pytest.MonkeyPatch, home: Path, database_url: str, double: StripeDouble) -> None:
    """Let `weir` run in an empty folder, on this database and this Stripe."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("WEIR_STRIPE__API_BASE", double.url)
    monkeypatch.setenv("WEIR_STRIPE__METER_EVENTS_BASE", double.url)
    monkeypatch.setenv("STRIPE_API_KEY", double.api_key)


def runner(capsys: pytest.CaptureFixture[str]) -> Weir:
    """A function that runs a command line."""
    for command in (
        customer.customer,
        key.key,
        usage.usage,
        report.report,
        trace.trace,
        db.db,
        init.init,
    ):
        if command.name not in app.root.commands:
            app.root.add_command(command)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = app.run(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
