"""What can not be counted is billed by what it has at least, and never for nothing."""

import asyncio
import json

import pytest

from billing.config import Upstream
from billing.tokens.counting import OutputTally
from billing.tokens.registry import TokenizerRegistry
from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import endpoints
from proxy.relay import asks
from proxy.relay.catalog import Server
from proxy.relay.connection import Pool
from proxy.relay.counting import Counting, Cut
from proxy.relay.request import Ask

TEXTS = ("Say hello to the nice people.", "", "a b\tc\nd", "你好 世界", "  spaced   out  ")


class Unreadable(TokenizerRegistry):
    """A registry whose vocabularies can not be read."""

    def vocabulary(self, model: str) -> Vocabulary:
        """Fail as a broken file does that nobody expected."""
        raise OSError(model)


def cut(text: str, prompt: Usage | None = None) -> Cut:
    """Two deltas of an answer to a text."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    ask = asks.read(endpoints.CHAT, json.dumps(body).encode())
    assert isinstance(ask, Ask)
    tally = OutputTally()
    for piece in ("Hello", "!"):
        tally.add(0, content=piece)
    upstream = Upstream(name="u", url="http://127.0.0.1:1", models={"m": "m"})
    loop = asyncio.new_event_loop()
    try:
        return Cut(ask, Server(upstream, Pool(upstream, loop), "openai", {"m": "m"}), tally, prompt)
    finally:
        loop.close()


@pytest.mark.parametrize("text", TEXTS)
def test_the_least_is_never_above_the_count(text: str, qwen: Vocabulary) -> None:
    """A token never spans two words, and a delta has at least one."""
    least = cut(text).least
    assert 1 <= least.input_tokens <= qwen.count(text) + 4, "a chat's template has more than four tokens"
    assert least.output_tokens == 2 == cut(text).tally.output_tokens(qwen)


def test_what_can_not_be_counted_is_billed_by_its_least() -> None:
    """The prompt as its server told it, where it did."""

    async def counted(of: Cut) -> Usage:
        counting = Counting(Unreadable({}), asyncio.get_running_loop())
        done: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        counting.count(of, done.set_result)
        try:
            return await done
        finally:
            await counting.close()

    assert asyncio.run(counted(cut("Say hello."))) == Usage(2, 2)
    assert asyncio.run(counted(cut("Say hello.", Usage(13, 0, 9)))) == Usage(13, 2, 9)


@pytest.mark.parametrize("value", [0, -1, -2])
@pytest.mark.parametrize("endpoint", [endpoints.OLLAMA_CHAT, endpoints.OLLAMA_GENERATE, endpoints.CHAT])
def test_ollama_takes_what_is_not_positive_for_no_limit(endpoint: str, value: int) -> None:
    """Read in source: it stops at `num_predict` only where that is above 0; `max_tokens` becomes `num_predict`."""
    limit = {"max_tokens": value} if endpoint == endpoints.CHAT else {"options": {"num_predict": value}}
    ask = asks.read(endpoint, json.dumps({"model": "m", "prompt": "a", "messages": [], **limit}).encode())
    assert isinstance(ask, Ask)
    assert ask.limit_on("ollama") is None
