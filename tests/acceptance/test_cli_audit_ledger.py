"""`weir audit ledger`: 0 and the totals where all holds, 1 and the rows where it does not."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing.cli import app
from billing.ledger.database import Database
from tests.acceptance.harness import Gateway, Upstream, price
from tests.acceptance.raw import ask, request
from tests.acceptance.serving import fake_upstream


def test_the_books_of_a_gateway_agree_until_one_is_changed_by_hand(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        fake_upstream() as fake,
        Gateway(tmp_path / "gateway", Upstream(fake.url), database_url=database_url) as gateway,
    ):
        answers = [ask(gateway, request(gateway.key)) for _ in range(3)]
        (row,) = json.loads(gateway.weir("audit", "ledger", "--json"))["customers"]
        assert row["events"] == row["rollups"] == row["unassigned"] == f"{3 * price(7, 3) * 10**-12:.12f}".rstrip("0")
        assert "all hold" in gateway.weir("audit", "ledger")
        database = Database(database_url)
        with database.writing() as conn:
            conn.execute(sa.text(f"UPDATE usage_events SET output_tokens = 2 WHERE id = '{answers[1].id}'"))
        database.close()
        capsys.readouterr()
        assert app.run(["--config", str(gateway.config_path), "audit", "ledger", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)["findings"]
        assert {each["row"] for each in found if each["audit"] == "amount = tokens × prices"} == {answers[1].id}
        assert any("its events come to" in each["fault"] for each in found)
        assert app.run(["--config", str(gateway.config_path), "audit", "ledger"]) == 1
        assert answers[1].id in capsys.readouterr().out
