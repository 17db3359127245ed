"""Asking upstreams what they are and what they serve: `GET /v1/models`, on a thread of its own, again and again.

An upstream with a configured model map is asked too, for its kind (its meter depends on it), but its map stays. One
that does not answer keeps what was known of it.
"""

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from billing import asking
from billing.address import parse
from billing.config import Upstream
from proxy.relay.catalog import OWNERS, Catalog, Server

ANSWER_BYTES_MAX = 4 * 2**20
TIMEOUT_S = 3
INTERVAL_S = 30.0
INTERVAL_WHILE_SILENT_S = 1.0

log = logging.getLogger("weir.discovery")


@dataclass(frozen=True, slots=True)
class Found:
    """What an upstream said of itself: its kind, "openai" where nothing tells, and its models' ids."""

    kind: str
    models: tuple[str, ...]


def ask(upstream: Upstream, tls: ssl.SSLContext | None = None, timeout_s: int = TIMEOUT_S) -> Found | None:
    """Ask one upstream; None if it does not answer with a list of models."""
    where, key = parse(upstream.url), upstream.api_key
    reply = asking.ask(where, "/v1/models", timeout_s=timeout_s, bytes_max=ANSWER_BYTES_MAX, api_key=key, tls=tls)
    if reply is None:
        return None
    parsed = reply.parsed
    data = parsed.get("data") if isinstance(parsed, dict) else None
    if not isinstance(data, list):
        return None
    entries = [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    owners = {str(entry.get("owned_by")) for entry in entries}
    kinds = [kind for owner, kind in OWNERS.items() if owner in owners]
    if reply.headers.get("server", "").startswith("llama.cpp"):
        kinds.insert(0, "llamacpp")
    return Found(kinds[0] if kinds else "openai", tuple(entry["id"] for entry in entries))


def learn(server: Server, found: Found) -> None:
    """Take over what an upstream said of itself."""
    server.learn_kind(found.kind)
    if not server.config.models:
        server.models = {model: model for model in found.models}


class Discovery:
    """The thread that asks; what it finds is applied on the event loop."""

    def __init__(self, catalog: Catalog, on_loop: Callable[[Callable[[], None]], object]) -> None:
        self._catalog = catalog
        self._on_loop = on_loop
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-discovery", daemon=True)
        self.silent: frozenset[str] = frozenset()

    def ask_once(self) -> None:
        """Ask every upstream now, in the calling thread: before the first request is taken."""
        found = {server.config.name: ask(server.config, server.pool.tls) for server in self._catalog.servers}
        self._apply(found)

    def start(self) -> None:
        """Go on asking."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=TIMEOUT_S + 1)

    @property
    def _interval_s(self) -> float:
        """How long until all are asked again: soon, while one is known to be away."""
        is_any_away = self.silent or any(server.is_unreachable for server in self._catalog.servers)
        return INTERVAL_WHILE_SILENT_S if is_any_away else INTERVAL_S

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                found = {server.config.name: ask(server.config, server.pool.tls) for server in self._catalog.servers}
            except Exception:  # without this thread, upstreams that come back would never be found
                log.exception("discovery.failed")
                continue
            self._on_loop(lambda found=found: self._apply(found))  # type: ignore[misc]

    def _apply(self, found: dict[str, Found | None]) -> None:
        for server in self._catalog.servers:
            answer = found[server.config.name]
            if answer is not None:
                learn(server, answer)
                server.found()
        silent = frozenset(name for name, answer in found.items() if answer is None)
        for name in silent - self.silent:
            log.warning("upstream.silent", extra={"upstream": name})
        self.silent = silent
        self._catalog.rebuild()
