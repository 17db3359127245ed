"""The GGUF reader: nothing past the file's end, no memory on a file's mere word, one kind of error."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens.errors import VocabularyError
from billing.tokens.gguf_metadata import GgufTokenizer, read_tokenizer
from billing.tokens.ranks import TOKENS_MAX
from billing.tokens.vocabulary import load
from tests.unit.tokens.small_files import MERGES, SPECIALS, spelled, write_gguf


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that gguf-py wrote."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", bos=True).read_bytes()


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key with its typed value."""
    return text(key) + struct.pack("<I", kind) + value


def file_of(*pairs: bytes, count: int | None = None, version: int = 3) -> bytes:
    """A header and pairs."""
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


def test_a_file_by_the_reference_writer_is_read(written: bytes) -> None:
    """Keys of all kinds are stepped over; those of the tokenizer are read."""
    read = read_tokenizer(written)
    assert read.pre == "qwen2"
    assert read.tokens == [*spelled(), *SPECIALS, "[PAD]"]
    assert read.kinds[-4:] == [1, 3, 4, 5]
    assert read.merges == [" ".join(found) for found in MERGES]
    assert (read.adds_bos, read.adds_eos) == (True, None)


def test_every_shorter_file_is_refused(written: bytes) -> None:
    """Cut anywhere, the metadata are incomplete."""
    end = written.rindex(b"tokenizer.ggml.add_bos_token") + len("tokenizer.ggml.add_bos_token") + 5
    for length in [*range(0, end, 7), end - 1]:
        with pytest.raises(VocabularyError):
            read_tokenizer(written[:length])
    assert isinstance(read_tokenizer(written[:end]), GgufTokenizer)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_nothing_else(written: bytes, data: st.DataObject) -> None:
    """Any bytes in any places: a tokenizer or a VocabularyError."""
    damaged = bytearray(written)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(written) - 1), st.integers(0, 255)), max_size=8)):
        damaged[at] = byte
    try:
        read = read_tokenizer(bytes(damaged))
    except VocabularyError:
        return
    assert len(read.kinds) == len(read.tokens)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_behind_a_true_header_are_refused(tail: bytes) -> None:
    """Random metadata never are a tokenizer."""
    with pytest.raises(VocabularyError):
        read_tokenizer(file_of(tail, count=3))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (file_of(count=2**63), "longer than the file|in the middle"),
        (file_of(version=1), "version 1"),
        (file_of(version=0x03000000), "version 50331648"),
        (file_of(pair("x", 77, b"")), "type 77"),
        (file_of(pair("x", 9, struct.pack("<IQ", 9, 1))), "type 9"),
        (file_of(pair("x", 9, struct.pack("<IQ", 8, 2**60))), "longer than the file|in the middle"),
        (file_of(pair("x", 9, struct.pack("<IQ", 4, 2**63))), "longer than the file"),
        (file_of(struct.pack("<Q", 2**40)), "a string of 1099511627776 bytes"),
        (file_of(pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, TOKENS_MAX + 1))), "4194305 entries"),
        (file_of(pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 6, 1) + b"abcd")), "unexpected type"),
        (file_of(pair("tokenizer.ggml.model", 12, bytes(8))), "unexpected type"),
        (file_of(pair("tokenizer.ggml.model", 8, text("llama"))), "'llama' is not a byte-level BPE"),
        (file_of(), "no tokenizer.ggml.model"),
        (file_of(pair("tokenizer.ggml.model", 8, text("gpt2"))), "no tokenizer.ggml.tokens"),
        (
            file_of(
                pair("tokenizer.ggml.model", 8, text("gpt2")),
                pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1) + text("a")),
                pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, 2) + bytes(8)),
            ),
            "one number for each token",
        ),
    ],
)
def test_what_can_not_be_is_said(content: bytes, complaint: str) -> None:
    """Each refusal says what is wrong; huge claims cost nothing."""
    with pytest.raises(VocabularyError, match=complaint):
        read_tokenizer(content)


def test_an_empty_or_tiny_file_is_refused() -> None:
    """Even the magic may be missing."""
    for content in (b"", b"GG", b"GGUF", b"GGUF\x03\x00"):
        with pytest.raises(VocabularyError):
            read_tokenizer(content)


def test_a_file_may_be_mapped(tmp_path: Path) -> None:
    """Loading maps the file instead of reading gigabytes of weights: here 8 GiB of nothing."""
    path = write_gguf(tmp_path / "huge.gguf")
    with path.open("r+b") as file:
        file.truncate(2**33)
    assert load(str(path)).count("hello") == 1
