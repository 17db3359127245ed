"""What the gateway's acceptance tests share: a gateway before a scripted upstream, and the answers that one gives."""

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually
from tests.acceptance.raw import CHAT, COMPLETIONS
from tests.emulators.upstream import FakeUpstream, Record, Send, Step, chat_chunk, json_answer, stream, usage_chunk

MODELS: Final = json_answer({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tests"}]})


def chat(prompt: int = 7, completion: int = 3, text: str = "hello") -> dict[str, object]:
    """A whole chat answer."""
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "created": 1_795_434_948,
        "model": MODEL,
        "object": "chat.completion",
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "id": "chatcmpl-fake",
    }


def plain(prompt: int = 7, completion: int = 3, text: str = "hello") -> Send:
    """The same as an HTTP answer."""
    return json_answer(chat(prompt, completion, text))


def streamed(*texts: str, prompt: int = 7, completion: int = 3) -> tuple[Send, ...]:
    """A whole stream with a delta for each text, its usage and [DONE]."""
    deltas = [chat_chunk({"role": "assistant", "content": None}), *(chat_chunk(text) for text in texts)]
    return stream(*deltas, chat_chunk({}, finish="stop"), usage_chunk(prompt, completion))


@contextlib.contextmanager
def fake_upstream(
    *, port: int = 0, socket_path: Path | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[FakeUpstream]:
    """A scripted upstream that tells its model, and knows one answer by heart for both endpoints."""
    with FakeUpstream(port=port, socket_path=socket_path, tls=tls) as fake:
        fake.always("/v1/models", MODELS)
        fake.always(CHAT, plain())
        fake.always(COMPLETIONS, plain())
        yield fake


@contextlib.contextmanager
def gateway_before(
    fake: FakeUpstream,
    home: Path,
    *,
    settings: Mapping[str, int] | None = None,
    options: Mapping[str, int | str] | None = None,
    database_url: str | None = None,
) -> Iterator[Gateway]:
    """A running gateway whose only upstream is the fake; `options` are the upstream's keys in `weir.toml`."""
    upstream = Upstream(fake.url, options=options or {})
    with Gateway(home, upstream, settings=settings, database_url=database_url) as gateway:
        yield gateway


def asked(fake: FakeUpstream) -> tuple[Record, ...]:
    """What the upstream was asked, but for the gateway's own questions."""
    return tuple(record for record in fake.requests if record.path != "/v1/models")


def next_record(fake: FakeUpstream, before: int) -> Record:
    """The first request after `before` others, once it has come."""
    return eventually(lambda: asked(fake)[before : before + 1], "the upstream is asked")[0]


def script_chat(fake: FakeUpstream, *steps: Step) -> int:
    """Answer the next chat request so; gives the number of requests before it, for `next_record`."""
    fake.script(*steps, path=CHAT)
    return len(asked(fake))
