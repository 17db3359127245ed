"""Questions that Weir itself puts to a model server, from a thread of its own: short, blocking, and never trusted.

A server that does not answer soon, or not with JSON, has said nothing (None): whoever asks has to do without.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import orjson

from billing import asking
from billing.address import parse
from proxy.meter import endpoints
from proxy.relay.asks import PROMPT_COUNTERS
from proxy.relay.catalog import Server
from proxy.relay.request import Ask

ASK_TIMEOUT_S: Final = 2
COUNT_BYTES_MAX: Final = 65_536
RENDERED_BYTES_MAX: Final = 64 * 2**20

_TEMPLATED: Final = "/apply-template"
_TOKENIZE: Final = "/tokenize"
_VLLM_TEMPLATE_FIELDS: Final = ("messages", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt")

_COUNTERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "llamacpp": PROMPT_COUNTERS,
        "vllm": {endpoints.MESSAGES: endpoints.COUNT_TOKENS, endpoints.CHAT: _TOKENIZE},
        "sglang": {endpoints.MESSAGES: endpoints.COUNT_TOKENS},
    }
)
"""Where servers count a prompt with their own template. llama.cpp's three and vLLM's `count_tokens` take the request's
body and answer `{"input_tokens": n}` (measured), as SGLang's does (read in source); vLLM's `/tokenize` takes
`messages` and answers `{"count": n}` (measured)."""

_VERSIONS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"llamacpp": ("/props", "build_info"), "vllm": ("/version", "version"), "ollama": ("/api/version", "version")}
)


def fetch(server: Server, path: str, question: object = None, *, bytes_max: int = COUNT_BYTES_MAX) -> object:
    """GET a path, or POST a JSON body to it; return the JSON of a 200, None for anything else."""
    try:
        body = orjson.dumps(question) if question is not None else None
    except TypeError:  # nested too deep to be written
        return None
    where, key, tls = parse(server.config.url), server.config.api_key, server.pool.tls
    reply = asking.ask(where, path, timeout_s=ASK_TIMEOUT_S, bytes_max=bytes_max, body=body, api_key=key, tls=tls)
    return reply.parsed if reply is not None else None


def prompt_tokens(server: Server, ask: Ask) -> int | None:
    """Return the server's own count of a request's prompt, its template included; None if it has no such route."""
    route = _COUNTERS.get(server.kind, {}).get(ask.endpoint)
    if route is None:
        return None
    upstream_model = server.models.get(ask.model, "")
    question: dict[str, object]
    if route == _TOKENIZE:
        question = {name: ask.body[name] for name in _VLLM_TEMPLATE_FIELDS if name in ask.body}
        question["model"] = upstream_model
        return _count(fetch(server, route, question, bytes_max=RENDERED_BYTES_MAX), "count")
    question = {**ask.body, "model": upstream_model, "stream": False, "stream_options": None}
    return _count(fetch(server, route, question), "input_tokens")


def rendered_prompt(server: Server, ask: Ask) -> str | None:
    """Return the text that the server's chat template makes of a request; None if it can not be had.

    llama.cpp alone shows it (`/apply-template`, measured). Unlike a number it can be counted by us.
    """
    if server.kind != "llamacpp" or ask.endpoint != endpoints.CHAT:
        return None
    parsed = fetch(server, _TEMPLATED, {**ask.body, "stream": False}, bytes_max=RENDERED_BYTES_MAX)
    prompt = parsed.get("prompt") if isinstance(parsed, dict) else None
    return prompt if isinstance(prompt, str) else None


def server_version(server: Server) -> str:
    """Return what a server calls its version, empty if it does not say."""
    route, field = _VERSIONS.get(server.kind, ("", ""))
    parsed = fetch(server, route) if route else None
    version = parsed.get(field) if isinstance(parsed, dict) else None
    return version if isinstance(version, str) else ""


def _count(parsed: object, field: str) -> int | None:
    count = parsed.get(field) if isinstance(parsed, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None
