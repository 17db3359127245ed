"""The gateways that are compared: each a context manager that starts one, ready to be asked.

Adding one is a function here and a line in DRIVERS. A driver that can't start raises BenchError; the run
goes on without it and says so.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from tests.bench.processes import running, status_of, wait_until_ready
from tests.bench.programs import BenchError
from tests.bench.weir import serve_weir
from tests.support.ports import free_port

# The newest whose requirements the package index could meet when this was written (1.103.8 and later ask
# for a certifi release that was not to be had). Raise it when it can be installed.
LITELLM = "1.103.7"
INSTALL_DEADLINE_S = 900
START_DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Place:
    """What a driver may use: the stand-in's port, a core, a directory of its own, and a cache that stays."""

    upstream_port: int
    core: int
    home: Path
    cache: Path


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway: where to ask and with which key; `root` is its first process, none for `direct`."""

    name: str
    port: int
    key: str
    root: int | None


@contextlib.contextmanager
def direct(place: Place) -> Iterator[Gateway]:
    """No gateway: what the load and the stand-in do by themselves."""
    yield Gateway("direct", place.upstream_port, "none", root=None)


NGINX_CONFIG = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 8192;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_max_body_size 32m;
    client_body_buffer_size 128k;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    upstream stand_in {{
        server 127.0.0.1:{upstream};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://stand_in;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 60s;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(place: Place) -> Iterator[Gateway]:
    """A bare reverse proxy with upstream keep-alive and no buffering: the floor for anything that relays."""
    program = which("nginx") or which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BenchError("not installed: install the package `nginx`")
    port = free_port()
    # As root its worker would become `nobody`, who may not reach the run's directory.
    user = "user root;" if os.geteuid() == 0 else ""
    config = place.home / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(user=user, upstream=place.upstream_port, port=port))
    command: list[str | Path] = [program, "-p", place.home, "-c", config, "-e", "stderr"]
    with running(place.core, command, home=place.home) as process:
        wait_until_ready(process, lambda: status_of(port, "/v1/models") == 200, START_DEADLINE_S)
        yield Gateway("nginx", port, "none", process.pid)


LITELLM_CONFIG = """\
model_list:
  - model_name: qwen3.5-9b
    litellm_params:
      model: openai/qwen3.5-9b
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
general_settings:
  master_key: {key}
litellm_settings:
  num_retries: 0
"""

# It would ask the network for price maps, presets, templates and posts at its start. These keep it to what
# is in the package; and whatever else it may think of fails at once on a proxy that isn't there.
LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}


@contextlib.contextmanager
def litellm(place: Place) -> Iterator[Gateway]:
    """LiteLLM's proxy with one worker, a master key and no database."""
    programs = install_litellm(place.cache)
    port, key = free_port(), "sk-bench-1234"
    config = place.home / "config.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=place.upstream_port, key=key))
    command: list[str | Path] = [programs / "litellm", "--config", config]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    with running(place.core, command, home=place.home, env=LITELLM_ENVIRONMENT) as process:
        wait_until_ready(process, lambda: status_of(port, "/v1/models", key=key) == 200, START_DEADLINE_S)
        yield Gateway("litellm", port, key, process.pid)


def install_litellm(cache: Path) -> Path:
    """The directory of its programs, in a virtual environment of its own that is made at the first use.

    The environment counts as made when its marker is there, so that one that was interrupted is made anew.
    """
    home = cache / f"litellm-{LITELLM}"
    marker = home / "complete"
    if not marker.exists():
        sys.stderr.write(f"installing litellm[proxy]=={LITELLM} into {home}, once: about a minute\n")
        _run_or_raise([sys.executable, "-m", "venv", "--clear", str(home)])
        _run_or_raise([str(home / "bin" / "pip"), "install", "--quiet", f"litellm[proxy]=={LITELLM}"])
        marker.touch()
    return home / "bin"


def _run_or_raise(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"not installed within {INSTALL_DEADLINE_S} s") from error
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BenchError(f"can't be installed: {(reasons or [done.stderr[-300:]])[-1][:300]}")


@contextlib.contextmanager
def weir(place: Place) -> Iterator[Gateway]:
    """Weir as it is installed beside this Python, strict, on SQLite in the run's directory."""
    with serve_weir(place.home, place.upstream_port, place.core) as (port, key, pid):
        yield Gateway("weir", port, key, pid)


DRIVERS: dict[str, Callable[[Place], AbstractContextManager[Gateway]]] = {
    "direct": direct,
    "nginx": nginx,
    "litellm": litellm,
    "weir": weir,
}
