"""`weir db backup` while requests are recorded: every copy is one moment of the ledger, to the last row."""

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream
from tests.faults.load import Load, assert_recorded, stand_in
from tests.support.postgres import PostgresServer, find_programs

ANSWERS = 20


def restored(gateway: Gateway, copy: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a ledger made of a copy."""
    if gateway.database_url.startswith("sqlite"):
        return f"sqlite:///{copy}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database()
    parts = urlsplit(url.replace("+psycopg", ""))
    where = ["-h", "127.0.0.1", "-p", str(parts.port), "-U", str(parts.username), "-d", parts.path[1:]]
    environment = {**os.environ, "PGPASSWORD": parts.password or ""}
    subprocess.run(["pg_restore", "--no-password", *where, str(copy)], check=True, env=environment)
    return url


@pytest.mark.slow
def test_what_is_copied_under_load_passes_every_audit_and_serves(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Plain, prepaid and budgeted requests come meanwhile; the last copy has all that was answered before it began."""
    monkeypatch.setenv("PATH", str(find_programs()), prepend=os.pathsep)
    with stand_in(tmp_path / "bench") as url:
        upstream = Upstream(url, models={MODEL: "qwen3.5-9b"}, options={"kind": "openai"})
        with Gateway(tmp_path / "one", upstream, database_url=database_url) as gateway:
            gateway.weir("customer", "add", "prepaid", "--prepaid")
            gateway.weir("credit", "grant", "prepaid", "50")
            prepaid, limited = gateway.new_key(customer="prepaid"), gateway.new_customer("limited")
            gateway.weir("customer", "set", "limited", "--budget", "50", "--per", "month")
            copies, before = [], set[str]()
            loads = [Load(gateway, clients=2, seed=n, key=key) for n, key in enumerate((gateway.key, prepaid, limited))]
            with loads[0], loads[1], loads[2]:
                for number in range(3):
                    for load in loads:
                        load.wait_for(ANSWERS)
                    before = {one.id for load in loads for one in load.seen.whole}
                    copies.append(tmp_path / f"{number}.copy")
                    gateway.weir("db", "backup", str(copies[-1]))
            assert_recorded(gateway, [one for load in loads for one in load.seen.whole])
            counts = []
            for copy in copies:
                behind = Gateway(tmp_path / copy.stem, upstream, database_url=restored(gateway, copy, request))
                behind.home.mkdir()
                behind.write_config()
                behind.weir("audit", "ledger")
                behind.assert_sums_agree()
                counts.append(len(behind.events()))
            assert counts == sorted(counts)
            assert counts[0] >= 3 * ANSWERS
            assert before <= {row["id"] for row in behind.events()}
            assert counts[-1] < len(gateway.events()), "requests came meanwhile"
