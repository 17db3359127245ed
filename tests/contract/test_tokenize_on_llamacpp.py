"""Our vocabularies against a real server's own `/tokenize`, on texts of all scripts: every token id is the same."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from billing.tokens.vocabulary import Vocabulary, load
from tests.inference.llama_server import LlamaServer
from tests.unit.tokens.texts import hard_texts


@pytest.fixture(scope="module", params=["built in", "the served GGUF"])
def vocabulary(request: pytest.FixtureRequest, llama: LlamaServer) -> Vocabulary:
    """Qwen3.5's, as it is built in and as it is read from the file that the server has loaded."""
    return load("qwen3.5" if request.param == "built in" else str(llama.model.path))


def tokens_of(llama: LlamaServer, text: str) -> list[int]:
    """What the server makes of a text."""
    question = urllib.request.Request(
        f"{llama.url}/tokenize", json.dumps({"content": text}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(question, timeout=20) as answer:
        return [int(token) for token in json.load(answer)["tokens"]]


def test_the_server_makes_the_same_tokens(llama: LlamaServer, vocabulary: Vocabulary) -> None:
    """llama.cpp composes no characters, parses special tokens, and splits what no merge yields: so do we."""
    texts = [text for text in hard_texts(400, seed=7) if "\x00" not in text]
    assert len(texts) > 300
    with ThreadPoolExecutor(4) as threads:
        theirs = list(threads.map(lambda text: tokens_of(llama, text), texts))
    ours = [vocabulary.encode(text) for text in texts]
    assert [text for text, one, other in zip(texts, ours, theirs, strict=True) if one != other] == []
