"""A vocabulary of 262 tokens in every file format, written by other libraries than ours."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE

from billing.tokens.patterns import QWEN2
from billing.tokens.ranks import BYTE_OF

ALPHABET: Final = {byte: char for char, byte in BYTE_OF.items()}
MERGES: Final = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "©"))
ORPHAN: Final = "Ġxyz"
"""A token that no merge builds."""

SPECIALS: Final = ("<|end|>", "<think>")


def spelled() -> list[str]:
    """All ordinary tokens as files spell them, by id."""
    return [*(ALPHABET[byte] for byte in range(256)), *(left + right for left, right in MERGES), ORPHAN]


def small_tokenizer(*, ignore_merges: bool = False, order: Sequence[int] | None = None) -> Tokenizer:
    """The vocabulary in Hugging Face's library; `order` gives the tokens other ids."""
    ids = {text: (order[nth] if order else nth) for nth, text in enumerate(spelled())}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=list(MERGES), ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    return tokenizer


def write_tokenizer_json(path: Path, tokenizer: Tokenizer) -> Path:
    """The file that transformers, vLLM and SGLang read."""
    tokenizer.save(str(path))
    return path


def write_ranks(path: Path) -> Path:
    """The file that tiktoken reads."""
    tokens = [bytes(BYTE_OF[char] for char in text) for text in spelled()]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def write_gguf(path: Path, *, pre: str = "qwen2", bos: bool | None = None) -> Path:
    """The file that llama.cpp reads, with some keys besides the tokenizer's."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("small")
    writer.add_context_length(4096)
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.texts", ["a", "bc"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*spelled(), *SPECIALS, "[PAD]"])
    kinds = [gguf.TokenType.NORMAL] * len(spelled())
    kinds += [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
