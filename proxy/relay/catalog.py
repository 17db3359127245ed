"""Public model names and the upstreams that serve them; which one a request goes to.

A configured map is fixed; an upstream without one is asked for its `/v1/models`, again and again. The choice is the
upstream with the least work for its weight, among those that answered last time. One that could not be reached, hung up
or timed out before it answered, or said that it is not available (502, 503, 504) is left alone for a while that
doubles: it has nothing in flight, so it would get every request. It is tried again when nobody else serves the model,
and one that could not be reached as soon as discovery finds it.
"""

from dataclasses import dataclass, field

from billing.config import Upstream
from proxy.meter.endpoints import is_served
from proxy.relay.busy import BusyClock
from proxy.relay.connection import Pool
from proxy.relay.headers import Headers

REST_S_MIN = 1.0
REST_S_MAX = 30.0
UNAVAILABLE = frozenset({502, 503, 504})
"""Answers of a server, or of a proxy before it, that can not serve now. 500 is none: llama.cpp says so of bad requests
(measured), and one customer's mistakes must not take a server from the others."""

OWNERS = {
    "llamacpp": "llamacpp",
    "vllm": "vllm",
    "sglang": "sglang",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
"""What a server says in `/v1/models` data[].owned_by → its kind."""

_NOBODY: "list[Server]" = []


@dataclass(slots=True, eq=False)
class Server:
    """One upstream at run time."""

    config: Upstream
    pool: Pool
    kind: str
    models: dict[str, str] = field(default_factory=dict)
    in_flight: int = 0
    busy: BusyClock = field(default_factory=BusyClock)
    failures: int = 0
    resting_until: float = 0.0
    is_unreachable: bool = False

    @property
    def reports_each_output(self) -> bool:
        """Whether usage comes once per output (llama.cpp; measured), and not once for all."""
        return self.kind == "llamacpp"

    def learn_kind(self, kind: str) -> None:
        """Set the kind that a probe found, unless the configuration names one."""
        if self.config.kind == "auto":
            self.kind = kind
        self.pool.keeps_after_stream = self.kind != "llamacpp"

    def recognise(self, headers: Headers) -> None:
        """Learn from an answer that this is llama.cpp: servers are exchanged between two questions of discovery."""
        if any(name == b"server" and value.startswith(b"llama.cpp") for name, value in headers):
            self.learn_kind("llamacpp")

    def failed(self, now: float, *, is_unreachable: bool = False) -> None:
        """Note that it could not be reached, or does not answer those who reach it."""
        self.is_unreachable = is_unreachable
        self.failures += 1
        self.resting_until = now + min(REST_S_MAX, REST_S_MIN * 2 ** min(self.failures - 1, 6))

    def answered(self, status: int, now: float) -> None:
        """Note that it answers, and whether it is available."""
        if status in UNAVAILABLE:
            self.failed(now)
        elif self.failures:
            self._recover()

    def found(self) -> None:
        """Note that it can be reached again; this alone does not say that it serves those who do."""
        if self.is_unreachable:
            self._recover()

    def _recover(self) -> None:
        self.failures = 0
        self.resting_until = 0.0
        self.is_unreachable = False


class Catalog:
    """All upstreams, and the models they serve."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers
        self._by_model: dict[str, list[Server]] = {}
        self.rebuild()

    def rebuild(self) -> None:
        """Index the servers by public model name, after one has learned its models."""
        by_model: dict[str, list[Server]] = {}
        for server in self.servers:
            for public in server.models:
                by_model.setdefault(public, []).append(server)
        self._by_model = by_model

    @property
    def models(self) -> list[str]:
        """All public model names, sorted."""
        return sorted(self._by_model)

    def serves(self, model: str, endpoint: str | None = None) -> bool:
        """Whether any upstream serves the model, and this path where one is named."""
        if endpoint is None:
            return model in self._by_model
        return any(is_served(endpoint, server.kind) for server in self._by_model.get(model, _NOBODY))

    def choose(self, model: str, now: float, tried: list[Server], endpoint: str = "") -> Server | None:
        """Return the upstream for one request; None if all that serve the model and path were tried."""
        serving = self._by_model.get(model, _NOBODY)
        candidates = [server for server in serving if server not in tried and is_served(endpoint, server.kind)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        awake = [server for server in candidates if server.resting_until <= now]
        if not awake:
            return min(candidates, key=lambda server: server.resting_until)
        return min(awake, key=lambda server: (server.in_flight + 1) * 1000 // server.config.weight)
