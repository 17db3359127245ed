"""The regexes that split text: complete, and the ones that other projects publish."""

import pytest
import regex  # type: ignore[import-untyped]  # has no types; tiktoken depends on it
import tiktoken
from hypothesis import given
from tiktoken_ext import openai_public  # type: ignore[import-untyped]  # part of tiktoken, without types

from billing.tokens.errors import VocabularyError
from billing.tokens.patterns import CUTTABLE, GPT2, LLAMA3, QWEN2, QWEN35, pre_tokenizer
from tests.unit.tokens.texts import plain_texts

SINGLE_BYTES = {bytes((byte,)): byte for byte in range(256)}


@pytest.mark.parametrize("pattern", sorted(CUTTABLE))
def test_no_character_falls_between_the_pieces(pattern: str) -> None:
    """With single bytes as the only tokens, each byte of each code point comes back."""
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=SINGLE_BYTES, special_tokens={})
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    for begin in range(0, len(everything), 50_000):
        part = everything[begin : begin + 50_000]
        assert encoding.decode(encoding.encode_ordinary(part)) == part


@given(plain_texts)
def test_gpt2_pieces_are_openais(text: str) -> None:
    """OpenAI's published r50k regex, written differently, splits alike."""
    assert regex.findall(GPT2, text) == regex.findall(openai_public.r50k_pat_str, text)


def test_pieces_by_hand() -> None:
    """What sets the families apart: digits, and marks such as the Bengali vowel sign."""
    assert regex.findall(QWEN35, "I'm 123  হাত\n\nx") == [
        "I",
        "'m",
        " ",
        "1",
        "2",
        "3",
        " ",
        " হাত",
        "\n\n",
        "x",
    ]
    assert regex.findall(QWEN2, " হাত") == [" হ", "াত"]
    assert regex.findall(LLAMA3, "1234 a") == ["123", "4", " a"]


def test_names_in_gguf_files_are_known_or_refused() -> None:
    """A wrong regex would count wrongly in silence, so that an unknown name is an error that lists the known
    ones."""
    assert pre_tokenizer("qwen35").regex == QWEN35
    assert pre_tokenizer("qwen2").normalizes_nfc
    llama = pre_tokenizer("llama-bpe")
    assert (llama.regex, llama.keeps_whole_pieces, llama.adds_bos) == (LLAMA3, True, True)
    with pytest.raises(VocabularyError, match=r"'deepseek-v3'.*qwen35.*gpt-4o"):
        pre_tokenizer("deepseek-v3")
