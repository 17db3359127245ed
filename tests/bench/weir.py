"""Weir in the benchmark: set up through its own command line, served, and its money counted afterwards.

Invariant: the rows of `usage_events` equal the answers that came, in number, tokens and amount. A fast
gateway that loses one is not fast, it is wrong.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import running, status_of, wait_until_ready
from tests.bench.programs import BenchError
from tests.support.ports import free_port

MODEL = "qwen3.5-9b"
COST_INPUT, COST_OUTPUT, MARGIN = "0.03", "0.12", "30%"
# What that comes to by hand: 0.03 usd per 1M tokens is 30,000 picounits a token, and 30 % more is 39,000.
INPUT_PICO, OUTPUT_PICO = 39_000, 156_000
START_DEADLINE_S = 60
COMMAND_DEADLINE_S = 60

CONFIG = """\
[gateway]
host = "127.0.0.1"
port = {port}
workers = 1

[database]
url = "sqlite:///{database}"

[[upstreams]]
name = "stand-in"
url = "http://127.0.0.1:{upstream}"
kind = "openai"
models = {{ "{model}" = "{model}" }}

[stripe]
enabled = false
"""


@contextlib.contextmanager
def serve_weir(home: Path, upstream_port: int, core: int) -> Iterator[tuple[int, str, int]]:
    """Weir on its core, with one priced model, customer and key: its port, the key, its process id."""
    program = Path(sys.executable).with_name("weir")
    if not program.exists():
        raise BenchError("no program `weir` beside this Python: install the project")
    port = free_port()
    config = home / "weir.toml"
    database = home / "weir.db"
    config.write_text(CONFIG.format(port=port, database=database, upstream=upstream_port, model=MODEL))
    command = [str(program), "--config", str(config)]
    key = _set_up(command, home)
    with running(core, [*command, "serve"], home=home) as process:
        wait_until_ready(process, lambda: status_of(port, "/readyz") == 200, START_DEADLINE_S)
        yield port, key, process.pid


def _set_up(command: list[str], home: Path) -> str:
    """Make the database, the prices, the customer; the secret of its key."""
    _weir(command, home, "db", "upgrade")
    _weir(command, home, "customer", "add", "bench")
    _weir(command, home, "cost", "set", MODEL, "--input", COST_INPUT, "--output", COST_OUTPUT)
    _weir(command, home, "margin", "set", MARGIN)
    created: dict[str, str] = json.loads(_weir(command, home, "key", "create", "bench", "--json"))
    return created["key"]


def _weir(command: list[str], home: Path, *words: str) -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)}
    done = subprocess.run(
        [*command, *words],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_DEADLINE_S,
    )
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise BenchError(f"`weir {' '.join(words)}` failed with {done.returncode}: {reason[-1][:300]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Totals:
    """Answers (or rows), their tokens, and what they come to in picounits."""

    count: int
    input_tokens: int
    output_tokens: int
    amount_pico: int


def owed(count: int, input_tokens: int, output_tokens: int) -> Totals:
    """What the answers that came ought to have left in the ledger."""
    amount_pico = input_tokens * INPUT_PICO + output_tokens * OUTPUT_PICO
    return Totals(count, input_tokens, output_tokens, amount_pico)


def recorded(home: Path) -> Totals:
    """What the ledger holds of completed requests, read behind Weir's back, summed in Python."""
    query = """
        SELECT input_tokens, output_tokens, amount_pico, COUNT(*) FROM usage_events
        WHERE outcome = 'completed' GROUP BY input_tokens, output_tokens, amount_pico
    """
    with contextlib.closing(sqlite3.connect(home / "weir.db", timeout=30)) as connection:
        rows: list[tuple[int, int, int, int]] = connection.execute(query).fetchall()
    return Totals(
        count=sum(count for *_, count in rows),
        input_tokens=sum(tokens * count for tokens, _, _, count in rows),
        output_tokens=sum(tokens * count for _, tokens, _, count in rows),
        amount_pico=sum(amount * count for _, _, amount, count in rows),
    )
