"""The built-in vocabulary against Hugging Face's `tokenizers`, fed with merges that other code derived."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from billing.tokens.patterns import QWEN35
from billing.tokens.vocabulary import Dialect, Vocabulary, load
from tests.inference.vocabulary import Kind, load_vocabulary
from tests.unit.tokens.texts import hard_texts, plain_texts


@pytest.fixture(scope="module")
def oracle() -> Tokenizer:
    """Qwen3.5's tokenizer as transformers builds it: merges only (no ignore_merges), one regex, no NFC
    yet."""
    words = load_vocabulary()
    normal = {text: nth for nth, text in enumerate(words.texts) if words.kinds[nth] is Kind.NORMAL}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in words.merges)]
    tokenizer = Tokenizer(BPE(vocab=normal, merges=merges))
    split = pre_tokenizers.Split(Regex(QWEN35), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    added = [nth for nth, kind in enumerate(words.kinds) if kind in (Kind.CONTROL, Kind.PRINTED)]
    tokenizer.add_special_tokens([AddedToken(words.texts[nth], normalized=False) for nth in added])
    return tokenizer


def test_hard_texts_have_the_same_tokens(qwen: Vocabulary, oracle: Tokenizer) -> None:
    """600 texts of all scripts, marks, white space, emoji, special tokens: every id is the same."""
    differing = [text for text in hard_texts(600, seed=1) if qwen.encode(text) != oracle.encode(text).ids]
    assert differing == []


def test_hard_texts_have_the_same_tokens_when_composed(qwen: Vocabulary, oracle: Tokenizer) -> None:
    """The same with NFC, as transformers and vLLM apply it; composing changes at least some of the texts."""
    texts = hard_texts(300, seed=2)
    bare = [qwen.encode(text) for text in texts]
    oracle.normalizer = normalizers.NFC()
    try:
        expected = [oracle.encode(text).ids for text in texts]
    finally:
        oracle.normalizer = None
    assert [qwen.encode(text, nfc=True) for text in texts] == expected
    assert bare != expected


@settings(max_examples=150, deadline=None)
@given(plain_texts)
def test_any_text_has_the_same_number_of_tokens(qwen: Vocabulary, oracle: Tokenizer, text: str) -> None:
    """The count is that of the other library."""
    assert qwen.count(text) == len(oracle.encode(text).ids)


@pytest.mark.slow
def test_a_real_size_tokenizer_json_is_the_same_vocabulary(qwen: Vocabulary, oracle: Tokenizer, tmp_path: Path) -> None:
    """Saved by the other library and loaded by ours: the same ids and special tokens."""
    path = tmp_path / "Qwen3.5-9B" / "tokenizer.json"
    path.parent.mkdir()
    oracle.save(str(path))
    read = load(str(path))
    texts = hard_texts(100, seed=3)
    assert [read.encode(text) for text in texts] == [qwen.encode(text) for text in texts]
    assert (read.name, read.dialect, read.specials) == ("Qwen3.5-9B", Dialect.QWEN35, qwen.specials)
