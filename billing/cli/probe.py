"""Which model servers answer on this machine, and of what kind they are: for `weir init` only.

A server is known by what it answers, never by its port: each is asked for /v1/models, whose `owned_by` names
most kinds, and then for what only one kind has. What can not be told is "auto": the gateway finds out later.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from billing import asking
from billing.address import parse
from billing.config import UpstreamKind

TIMEOUT_S = 1
ANSWER_BYTES_MAX = 2**20
CANDIDATES = tuple(f"http://127.0.0.1:{port}" for port in (8080, 8000, 11434, 30000, 1234))
"""Where llama.cpp, vLLM, Ollama, SGLang and LM Studio listen unless told otherwise."""

_OWNERS: dict[str, UpstreamKind] = {
    "llamacpp": "llamacpp",
    "vllm": "vllm",
    "sglang": "sglang",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
_MARKS: tuple[tuple[str, str, UpstreamKind], ...] = (
    ("/props", "default_generation_settings", "llamacpp"),
    ("/version", "version", "vllm"),
    ("/api/tags", "models", "ollama"),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A model server that answered; `models` is None where it wants a key before it names them."""

    url: str
    kind: UpstreamKind
    models: tuple[str, ...] | None


def find(urls: Sequence[str] = CANDIDATES) -> list[Server]:
    """Ask all at once, and return those that answer as model servers do, in the given order."""
    with ThreadPoolExecutor(len(urls)) as threads:
        return [server for server in threads.map(ask, urls) if server is not None]


def ask(url: str) -> Server | None:
    """Return the server at a URL, None if there is none that speaks this API."""
    status, answer = _get(url, "/v1/models")
    if status in (401, 403):
        return Server(url, "auto", None)
    listed = answer.get("data")
    if status != 200 or not isinstance(listed, list):
        return None
    entries = [entry for entry in listed if isinstance(entry, dict)]
    ids = [entry.get("id") for entry in entries]
    models = tuple(name for name in ids if isinstance(name, str) and name.isprintable())
    return Server(url, _kind(url, [str(entry.get("owned_by")) for entry in entries]), models)


def _kind(url: str, owners: Sequence[str]) -> UpstreamKind:
    for owner in owners:
        if owner in _OWNERS:
            return _OWNERS[owner]
    for path, mark, kind in _MARKS:
        status, answer = _get(url, path)
        if status == 200 and mark in answer:
            return kind
    return "auto"


def _get(url: str, path: str) -> tuple[int, dict[str, object]]:
    """Return a status and a JSON object; status 0 and {} for whatever else happens."""
    reply = asking.ask(parse(url), path, timeout_s=TIMEOUT_S, bytes_max=ANSWER_BYTES_MAX)
    if reply is None:
        return 0, {}
    return reply.status, reply.parsed if isinstance(reply.parsed, dict) else {}
