"""Vocabularies from files: every format counts as the library that made it, and what can not be counted with
is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer, processors

from billing.tokens.errors import VocabularyError
from billing.tokens.vocabulary import Dialect, Vocabulary, load, server_normalizes
from tests.unit.tokens.small_files import (
    SPECIALS,
    small_tokenizer,
    spelled,
    write_gguf,
    write_ranks,
    write_tokenizer_json,
)
from tests.unit.tokens.texts import plain_texts

LETTERS = "hello worldé xyz<|end|> hell"


@pytest.fixture(scope="module")
def oracle() -> Tokenizer:
    """Hugging Face's own reading of the small vocabulary."""
    return small_tokenizer()


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory, oracle: Tokenizer) -> dict[str, Vocabulary]:
    """The small vocabulary from each kind of file."""
    folder = tmp_path_factory.mktemp("small")
    files = {
        "json": str(write_tokenizer_json(folder / "tokenizer.json", oracle)),
        "gguf": str(write_gguf(folder / "small.gguf")),
        "ranks": f"{write_ranks(folder / 'small.tiktoken')}#qwen2",
    }
    return {name: load(source) for name, source in files.items()}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain_texts)
def test_every_format_has_the_tokens_of_the_other_library(
    formats: dict[str, Vocabulary], oracle: Tokenizer, text: str
) -> None:
    """The same ids from tokenizer.json and GGUF; the ranks file has no special tokens, so it agrees on other
    texts."""
    text = f"{text} hello worldé xyz"
    expected = oracle.encode(text).ids
    assert formats["json"].encode(text) == expected
    assert formats["gguf"].encode(text) == expected
    if not any(special in text for special in SPECIALS):
        assert formats["ranks"].encode(text) == expected


def test_names_and_kinds_are_read(formats: dict[str, Vocabulary]) -> None:
    """Padding is no special token; the template's language can not be told from these."""
    assert formats["gguf"].specials == {"<|end|>": 263, "<think>": 264}
    assert formats["json"].specials == formats["gguf"].specials
    assert formats["gguf"].name == "small"
    assert {vocabulary.dialect for vocabulary in formats.values()} == {Dialect.OTHER}
    assert formats["gguf"].normalizes_nfc
    assert not formats["json"].normalizes_nfc


def test_ids_that_do_not_follow_the_merges_are_translated(tmp_path: Path) -> None:
    """With ids in reverse order the merges still decide, and the ids are the file's."""
    reverse = small_tokenizer(order=list(reversed(range(len(spelled())))))
    read = load(str(write_tokenizer_json(tmp_path / "tokenizer.json", reverse)))
    assert read.encode(LETTERS) == reverse.encode(LETTERS).ids
    assert read.ids is not None


def test_a_tokenizer_that_ignores_merges_takes_whole_pieces(tmp_path: Path) -> None:
    """Llama 3 does; then a token that no merge builds is one token, as a whole piece only."""
    whole = small_tokenizer(ignore_merges=True)
    read = load(str(write_tokenizer_json(tmp_path / "tokenizer.json", whole)))
    assert read.encode("a xyz") == whole.encode("a xyz").ids
    assert read.count(" xyz") == 1
    assert load(str(write_tokenizer_json(tmp_path / "tokenizer.json", small_tokenizer()))).count(" xyz") == 4


def test_tokens_around_each_prompt_are_known(tmp_path: Path) -> None:
    """A BOS comes from a template in tokenizer.json, from a flag in GGUF, or from what llama.cpp does by
    default."""
    tokenizer = small_tokenizer()
    template = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 263)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    read = load(str(write_tokenizer_json(tmp_path / "tokenizer.json", tokenizer)))
    assert read.prompt_extra == 1 == len(tokenizer.encode("").ids)
    assert load(str(write_gguf(tmp_path / "a.gguf"))).prompt_extra == 0
    assert load(str(write_gguf(tmp_path / "b.gguf", bos=True))).prompt_extra == 1
    assert load(str(write_gguf(tmp_path / "c.gguf", pre="llama-bpe"))).prompt_extra == 1
    assert load(str(write_gguf(tmp_path / "d.gguf", pre="llama-bpe", bos=False))).prompt_extra == 0


def test_servers_that_compose_characters() -> None:
    """vLLM and SGLang use the tokenizer's normaliser; llama.cpp and what is built on it have none."""
    assert server_normalizes("vllm")
    assert server_normalizes("sglang")
    assert not any(map(server_normalizes, ("llamacpp", "ollama", "lmstudio")))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("absent.gguf", None, "No such file"),
        ("model.bin", b"", "neither 'qwen3.5' nor a path"),
        ("empty.gguf", b"", "empty"),
        ("text.gguf", b"hello, this is not one", "not a GGUF file"),
        ("a.tiktoken", b"aGVsbG8= 1\nworld\n", "line 2 is not"),
        ("b.tiktoken", b"aGVsbG8= one\n", "line 1 is not"),
        ("c.tiktoken", b"aGVsbG8= 1\n", "not known for 1 ranks: add #NAME"),
        ("d.tiktoken#qwen2", b"aGVsbG8= 1\n", "256 of the 256 single bytes"),
        ("e.tiktoken#nonsense", b"aGVsbG8= 1\n", "unknown pre-tokenizer 'nonsense'"),
        ("f.json", b"{", "not JSON"),
        ("g.json", b"[]", "the file is not an object"),
        ("h.json", b'{"model": {"type": "Unigram"}}', "not a byte-level BPE"),
        ("i.json", b'{"model": {"vocab": {"a": "1"}, "merges": []}}', "the id of 'a' is not a number"),
        (
            "j.json",
            b'{"model": {"vocab": {"\xe2\x96\x81a": 1}, "merges": ["\xe2\x96\x81 a"]}}',
            "not a byte-level",
        ),
    ],
)
def test_a_file_that_is_not_a_vocabulary_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    """The message names the source and what is wrong with it."""
    path = tmp_path / name.partition("#")[0]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VocabularyError) as refused:
        load(str(tmp_path / name))
    assert complaint in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre-tokenizer 'Whitespace'"),
        ("pre_tokenizer", None, "0 split rules"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "add_prefix_space"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"},
            "a Split rule",
        ),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
            "tiktoken refuses",
        ),
        ("post_processor", {"type": "Novel"}, "post-processor 'Novel'"),
        ("added_tokens", [{"id": 1}], "an added token"),
        ("added_tokens", [{"id": 900, "content": "<a"}, {"id": 901, "content": "<a>"}], "begin alike"),
    ],
)
def test_what_is_not_understood_in_a_tokenizer_json_is_refused(
    tmp_path: Path, part: str, value: object, complaint: str
) -> None:
    """A part that changes counts is never guessed."""
    path = write_tokenizer_json(tmp_path / "tokenizer.json", small_tokenizer())
    described = json.loads(path.read_text("utf-8"))
    described[part] = value
    path.write_text(json.dumps(described), "utf-8")
    with pytest.raises(VocabularyError, match=complaint):
        load(str(path))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("byte_fallback", True, "byte-level"),
        ("end_of_word_suffix", "</w>", "suffixes"),
        ("merges", [["h"]], "not a pair"),
        ("merges", None, "model.merges is not a list"),
        ("vocab", [], "model.vocab is not an object"),
    ],
)
def test_a_model_that_is_not_understood_is_refused(tmp_path: Path, field: str, value: object, complaint: str) -> None:
    """Subword suffixes, byte fallback and broken tables."""
    path = write_tokenizer_json(tmp_path / "tokenizer.json", small_tokenizer())
    described = json.loads(path.read_text("utf-8"))
    described["model"][field] = value
    path.write_text(json.dumps(described), "utf-8")
    with pytest.raises(VocabularyError, match=complaint):
        load(str(path))
