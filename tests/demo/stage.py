"""The demo's processes, in a temporary folder: opened in order, closed in reverse, whatever happens."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulators.stripe_double import StripeDouble
from tests.inference.llama_server import LlamaServer
from tests.support.ports import free_port

READY_WITHIN_S = 30
STOP_WITHIN_S = 20

CONFIG = """\
[gateway]
port = {port}

[database]
url = "sqlite:///weir.db"

[[upstreams]]
name = "local"
url = "{upstream}"

[stripe]
api_base = "{stripe}"
meter_events_base = "{stripe}"

[dunning]
grace_days = 0
"""


@dataclass(frozen=True)
class Stage:
    """What runs, and how to reach it."""

    folder: Path
    environment: Mapping[str, str]
    llama: LlamaServer
    stripe: StripeDouble
    port: int

    @property
    def url(self) -> str:
        """Weir's address."""
        return f"http://127.0.0.1:{self.port}"

    def weir(self, *words: str) -> str:
        """Run one `weir` command and return what it printed; a failure ends the demo with its message."""
        command, environment = [_program(), *words], dict(self.environment)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"`weir {' '.join(words)}` failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def weir_json(self, *words: str) -> Any:
        """Run one `weir` command with --json."""
        return json.loads(self.weir(*words, "--json"))


def _program() -> str:
    return str(Path(sys.executable).with_name("weir"))


@contextmanager
def opened() -> Iterator[Stage]:
    """Start the model server and the Stripe double, and write Weir's configuration; `serving` starts Weir itself."""
    with tempfile.TemporaryDirectory(prefix="weir-demo-") as name, LlamaServer() as llama, StripeDouble() as double:
        folder, port = Path(name), free_port()
        target = double.add_webhook(f"http://127.0.0.1:{port}/stripe/webhook")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("WEIR_", "STRIPE_"))},
            "STRIPE_API_KEY": double.api_key,
            "STRIPE_WEBHOOK_SECRET": target.secrets[0][0],
        }
        config = CONFIG.format(port=port, upstream=llama.url, stripe=double.url)
        (folder / "weir.toml").write_text(config, encoding="utf-8")
        yield Stage(folder, environment, llama, double, port)


@contextmanager
def serving(stage: Stage) -> Iterator[None]:
    """Run `weir serve` until the block ends."""
    with (stage.folder / "serve.log").open("wb") as log:
        process = subprocess.Popen([_program(), "serve"], cwd=stage.folder, env=dict(stage.environment), stderr=log)
        try:
            _wait_until_ready(stage, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(stage: Stage, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{stage.url}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    log = (stage.folder / "serve.log").read_text(encoding="utf-8")
    raise SystemExit(f"`weir serve` did not get ready:\n{log}")
