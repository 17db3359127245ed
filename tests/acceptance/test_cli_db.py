"""`weir db` and `weir init`: from nothing to a configuration and a ledger, and a copy of it that is whole."""

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.cli import init as init_command
from billing.cli import probe
from billing.cli.probe import Server
from billing.config import load
from billing.ledger import accounts, events, migrate
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, FAILED, REFUSED, Weir, runner
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer, find_programs
from tests.tables import at
from tests.unit.ledger.made import event

NOON = at("2026-03-01T12")


@pytest.fixture
def weir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line in an empty folder, without a configuration in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WEIR_", "STRIPE_"))]:
        monkeypatch.delenv(name)
    return runner(capsys)


@pytest.fixture
def database(database_url: str, weir: Weir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The commands' database, upgraded by the command."""
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    assert weir("db", "upgrade").code == DONE
    opened = Database(database_url)
    yield opened
    opened.close()


def test_an_upgrade_says_what_it_did(weir: Weir, database: Database) -> None:
    """The second has nothing to do."""
    answer = weir("db", "upgrade")
    assert (answer.code, answer.out) == (DONE, f"nothing to do: the database is at {migrate.revisions()[-1]}\n")


def sums_of(path: Path) -> tuple[int, int, int]:
    """The events of a SQLite file, their sum, and the sum of its rollups, in picounits."""
    with closing(sqlite3.connect(path)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        events_of, total = copy.execute("SELECT count(*), sum(amount_pico) FROM usage_events").fetchone()
        micro, pico = copy.execute("SELECT sum(amount_micro), sum(amount_pico) FROM usage_hourly").fetchone()
    return events_of, total, micro * 10**6 + pico


def test_a_backup_taken_while_usage_is_recorded_is_one_moment_of_it(weir: Weir, tmp_path: Path) -> None:
    """Each copy has as many events as were committed at some moment, and its rollups are their sum."""
    assert weir("init", "--upstream", "http://127.0.0.1:1").code == DONE
    database = Database(load(Path("weir.toml")).database.url)
    stop = threading.Event()
    recorded = [0]

    def record() -> None:
        while not stop.is_set():
            with database.writing() as conn:
                events.append(conn, [event(NOON, amount_pico=1_234_567) for _ in range(3)], 0)
            recorded[0] += 3

    writer = threading.Thread(target=record)
    writer.start()
    try:
        for number in range(5):
            seen = recorded[0]
            while recorded[0] < seen + 30:
                assert writer.is_alive()
                stop.wait(0.001)
            before = recorded[0]
            assert weir("db", "backup", f"{number}.db").code == DONE
            count, total, rolled_up = sums_of(tmp_path / f"{number}.db")
            assert before <= count <= recorded[0] + 3
            assert count % 3 == 0
            assert total == rolled_up == count * 1_234_567
    finally:
        stop.set()
        writer.join()
        database.close()
    copies = {path.name for path in tmp_path.iterdir() if path.name[0].isdigit()}
    assert copies == {f"{number}.db" for number in range(5)}
    assert stat.S_IMODE((tmp_path / "0.db").stat().st_mode) == 0o600


def test_a_backup_is_a_database_to_go_on_with(weir: Weir, tmp_path: Path) -> None:
    """Its customers are there when it is put in the place of the lost one."""
    weir("init", "--upstream", "http://127.0.0.1:1")
    added = weir("customer", "add", "acme", "--json").json
    weir("db", "backup", "copy.db")
    for lost in tmp_path.glob("weir.db*"):
        lost.unlink()
    (tmp_path / "copy.db").rename(tmp_path / "weir.db")
    assert weir("customer", "list", "--json").json == [added]


def test_a_backup_overwrites_only_what_it_is_told_to(weir: Weir, tmp_path: Path) -> None:
    """And says where it can not write."""
    weir("init", "--upstream", "http://127.0.0.1:1")
    (tmp_path / "copy.db").write_text("mine")
    answer = weir("db", "backup", "copy.db")
    assert (answer.code, (tmp_path / "copy.db").read_text()) == (REFUSED, "mine")
    assert weir("db", "backup", "copy.db", "--yes").code == DONE
    assert (tmp_path / "copy.db").read_bytes().startswith(b"SQLite format 3")
    answer = weir("db", "backup", "no/such/folder/copy.db")
    assert (answer.code, answer.err.count("\n")) == (FAILED, 1)


@pytest.fixture
def on_postgresql(postgres_server: PostgresServer, weir: Weir, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the commands' PostgreSQL database, with the customer acme."""
    url = postgres_server.create_database()
    monkeypatch.setenv("WEIR_DATABASE__URL", url)
    weir("db", "upgrade")
    weir("customer", "add", "acme")
    yield url
    postgres_server.drop_database(url)


def test_a_backup_of_postgresql_is_pg_dumps(
    on_postgresql: str, postgres_server: PostgresServer, weir: Weir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And can be restored: partitions, constraints and rows."""
    monkeypatch.setenv("PATH", str(find_programs()), prepend=os.pathsep)
    assert weir("db", "backup", "copy.dump").code == DONE
    restored = postgres_server.create_database()
    parts = urlsplit(restored.replace("+psycopg", ""))
    monkeypatch.setenv("PGPASSWORD", parts.password or "")
    where = ["-h", "127.0.0.1", "-p", str(parts.port), "-U", str(parts.username), "-d", parts.path[1:]]
    subprocess.run(["pg_restore", "--no-password", *where, str(tmp_path / "copy.dump")], check=True)
    database = Database(restored)
    migrate.require_current(database)
    with database.writing() as conn:
        assert [customer.name for customer in accounts.list_customers(conn)] == ["acme"]
        events.append(conn, [event(NOON)], 0)
    database.close()
    postgres_server.drop_database(restored)


def test_without_pg_dump_the_command_is_told_and_not_the_password(
    on_postgresql: str, weir: Weir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be run where the tool is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("pg_dump") is None
    answer = weir("db", "backup", "my copy.dump")
    assert (answer.code, answer.out) == (FAILED, "")
    parts = urlsplit(on_postgresql)
    command = "pg_dump --format=custom --file='my copy.dump' --dbname=postgresql://"
    assert f"{command}{parts.username}@127.0.0.1:{parts.port}{parts.path}" in answer.err
    assert str(parts.password) not in answer.err
    assert not list(tmp_path.glob("*.unfinished"))


# Each server's answers as its own documentation and captures have them, cut to what is looked at.
LLAMACPP = {"/v1/models": {"data": [{"id": "qwen", "owned_by": "llamacpp"}]}, "/props": {"total_slots": 1}}
VLLM = {"/v1/models": {"data": [{"id": "Qwen/Qwen3.5-9B", "owned_by": "vllm"}]}, "/version": {"version": "0.32"}}
OLLAMA = {"/v1/models": {"data": [{"id": "qwen3.5:9b", "owned_by": "library"}]}, "/api/tags": {"models": []}}
SGLANG = {"/v1/models": {"data": [{"id": "Qwen/Qwen3.5-9B", "owned_by": "sglang"}]}}
LMSTUDIO = {"/v1/models": {"data": [{"id": "qwen3.5-9b", "owned_by": "organization_owner"}]}}
UNTOLD = {"/v1/models": {"data": [{"id": "m", "owned_by": "me"}]}}


class Servers:
    """Small HTTP servers that give JSON answers by path; what they do not know is 404."""

    def __init__(self) -> None:
        self.running: list[ThreadingHTTPServer] = []

    def start(self, answers: dict[str, Any], *, status: int = 200) -> str:
        """Start one, and return its URL."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(answers.get(self.path, {})).encode()
                self.send_response(status if self.path in answers or status != 200 else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        self.running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    def close(self) -> None:
        """End all."""
        for server in self.running:
            server.shutdown()
            server.server_close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    """A maker of servers."""
    made = Servers()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (LLAMACPP, "llamacpp"),
        (VLLM, "vllm"),
        (OLLAMA, "ollama"),
        (SGLANG, "sglang"),
        (LMSTUDIO, "lmstudio"),
        (UNTOLD, "auto"),
        ({**UNTOLD, "/props": {"default_generation_settings": {}}}, "llamacpp"),
        ({**UNTOLD, "/version": {"version": "0.32"}}, "vllm"),
        ({**UNTOLD, "/api/tags": {"models": []}}, "ollama"),
        ({"/v1/models": {"data": []}, "/api/tags": {"models": []}}, "ollama"),
    ],
)
def test_a_model_server_is_known_by_its_answers(servers: Servers, answers: dict[str, Any], kind: str) -> None:
    """By the owner that its models name, or by what only its kind has."""
    url = servers.start(answers)
    models = tuple(entry["id"] for entry in answers["/v1/models"]["data"])
    assert probe.ask(url) == Server(url, kind, models)  # type: ignore[arg-type]


def test_what_is_no_model_server_is_not_taken_for_one(servers: Servers) -> None:
    """A closed port, a web page, a server without the route, one whose list is none, one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = [
            f"http://127.0.0.1:{free_port()}",
            servers.start({"/": {}}),
            servers.start({"/v1/models": []}),
            servers.start({"/v1/models": {"data": "none"}}),
            servers.start({"/v1/models": {"data": []}}, status=500),
            f"http://127.0.0.1:{silent.getsockname()[1]}",
        ]
        assert probe.find(urls) == []


def test_a_server_that_asks_for_a_key_is_found(servers: Servers) -> None:
    """And the file has the place for it."""
    url = servers.start({}, status=401)
    found = probe.find([url])
    assert found == [Server(url, "auto", None)]
    assert 'api_key = ""' in init_command.document(found, "token")


def test_init_makes_a_configuration_a_database_and_a_start(weir: Weir, servers: Servers, tmp_path: Path) -> None:
    """For a server that was named: its kind and model are found, and the next commands are printed."""
    url = servers.start(VLLM)
    answer = weir("init", "--upstream", url + "/v1")
    assert (answer.code, answer.err) == (DONE, "")
    config = load(tmp_path / "weir.toml")
    (upstream,) = config.upstreams
    assert (upstream.name, upstream.url, upstream.kind, upstream.models) == ("vllm", url, "vllm", {})
    assert len(config.gateway.admin_token) >= 43
    assert stat.S_IMODE((tmp_path / "weir.toml").stat().st_mode) == 0o600
    assert weir("customer", "list", "--json").json == []
    for step in ("cost set Qwen/Qwen3.5-9B", "margin set", "customer add", "key create", "serve"):
        assert f"  weir {step}" in answer.out
    assert config.gateway.admin_token not in answer.out


def test_init_overwrites_only_when_told_to(weir: Weir, tmp_path: Path) -> None:
    """And then makes another token, and keeps the ledger."""
    weir("init", "--upstream", "http://127.0.0.1:1")
    weir("customer", "add", "acme")
    first = load(tmp_path / "weir.toml").gateway.admin_token
    answer = weir("init")
    assert (answer.code, answer.out) == (REFUSED, "")
    assert "--yes" in answer.err
    assert load(tmp_path / "weir.toml").gateway.admin_token == first
    assert weir("init", "--upstream", "http://127.0.0.1:1", "--yes").code == DONE
    assert load(tmp_path / "weir.toml").gateway.admin_token != first
    assert [row["name"] for row in weir("customer", "list", "--json").json] == ["acme"]


def test_init_writes_where_it_is_told_to(weir: Weir, tmp_path: Path) -> None:
    """The database beside the file; without one if so asked; a fault of the place is one line."""
    (tmp_path / "etc").mkdir()
    assert weir("--config", "etc/my.toml", "init", "--upstream", "http://127.0.0.1:1", "--no-db").code == DONE
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["my.toml"]
    assert weir("--config", "etc/my.toml", "db", "upgrade").code == DONE
    assert (tmp_path / "etc" / "weir.db").exists()
    answer = weir("--config", "none/my.toml", "init", "--upstream", "http://127.0.0.1:1")
    assert (answer.code, answer.err.count("\n")) == (FAILED, 1)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://a b", "http://host\n[stripe]", ""])
def test_init_refuses_what_is_no_url(weir: Weir, tmp_path: Path, url: str) -> None:
    """Before it writes anything."""
    assert weir("init", "--upstream", url).code == 2
    assert list(tmp_path.iterdir()) == []


def test_init_looks_on_this_machine(weir: Weir, tmp_path: Path) -> None:
    """Whatever runs here, the file that it writes is valid."""
    assert weir("init", "--no-db").code == DONE
    assert load(tmp_path / "weir.toml").billing.currency == "usd"


def test_a_file_without_a_server_has_an_example_that_works(tmp_path: Path) -> None:
    """Once its marks of comment are taken away."""
    path = tmp_path / "weir.toml"
    path.write_text(init_command.document([], "token"))
    assert load(path, {}).upstreams == ()
    example, mark, rest = path.read_text().partition("\n[stripe]")
    example = example.replace("\n# [[", "\n[[").replace("\n# name", "\nname").replace("\n# url", "\nurl")
    path.write_text(example + mark + rest)
    assert [upstream.url for upstream in load(path, {}).upstreams] == ["http://127.0.0.1:8080"]


def test_several_servers_get_names_of_their_own(tmp_path: Path) -> None:
    """Two of a kind are told apart; what a server calls its models can not change the file."""
    found = [
        Server("http://127.0.0.1:1", "vllm", ("a", 'b"]')),
        Server("http://127.0.0.1:2", "vllm", ()),
        Server("http://127.0.0.1:3", "auto", None),
    ]
    path = tmp_path / "weir.toml"
    path.write_text(init_command.document(found, 'to"ken'))
    config = load(path, {})
    assert [upstream.name for upstream in config.upstreams] == ["vllm", "vllm-2", "local"]
    assert [upstream.kind for upstream in config.upstreams] == ["vllm", "vllm", "auto"]
    assert config.gateway.admin_token == 'to"ken'


def test_a_models_name_can_not_write_configuration(servers: Servers) -> None:
    """One with a line break is left out."""
    url = servers.start({"/v1/models": {"data": [{"id": "a\n[stripe]"}, {"id": "fine"}, {"id": 7}, "none"]}})
    found = probe.ask(url)
    assert found is not None
    assert found.models == ("fine",)
