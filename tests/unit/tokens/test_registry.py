"""Which vocabulary a model gets, and that it is loaded once."""

import threading
from pathlib import Path

import pytest

from billing.errors import ConfigError
from billing.tokens.errors import VocabularyError
from billing.tokens.registry import Choice, TokenizerRegistry
from billing.tokens.vocabulary import Vocabulary
from tests.unit.tokens.small_files import write_gguf, write_ranks


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen3.5-9B",
        "qwen3.5:9b",
        "unsloth/Qwen3.5-9B-GGUF",
        "Qwen3.6-35B-A3B",
        "qwen3_5",
        "qwen35-4b",
        "QWEN-3.5",
    ],
)
def test_qwen35_is_recognised_by_its_names(model: str) -> None:
    """Whatever hub, quantiser or server the name comes from."""
    assert TokenizerRegistry().choose(model) == Choice("qwen3.5", is_exact=True)


@pytest.mark.parametrize("model", ["gpt-4o", "Qwen/Qwen2.5-7B", "Qwen3-8B", "qwen3-5b", "Qwen-35B", "llama3.5", ""])
def test_other_models_are_counted_approximately_and_say_so(model: str) -> None:
    """The fallback is a count, and not an exact one."""
    assert TokenizerRegistry().choose(model) == Choice("qwen3.5", is_exact=False)


def test_the_most_specific_pattern_wins_whatever_the_order() -> None:
    """A name before patterns, more literal characters before fewer; case does not matter."""
    registry = TokenizerRegistry(
        {"*": "any.json", "llama*": "llama.json", "llama-3*": "three.gguf", "Llama-3-8B": "eight.gguf"}
    )
    chosen = {model: registry.choose(model).source for model in ("x", "LLAMA", "llama-3-70b", "llama-3-8b")}
    assert chosen == {
        "x": "any.json",
        "LLAMA": "llama.json",
        "llama-3-70b": "three.gguf",
        "llama-3-8b": "eight.gguf",
    }
    assert registry.choose("x").is_exact


def test_equal_patterns_keep_the_order_of_the_file() -> None:
    """Both match, both are as narrow: the first one counts."""
    assert TokenizerRegistry({"a*": "one.json", "*a": "two.json"}).choose("aa").source == "one.json"
    assert TokenizerRegistry({"*a": "two.json", "a*": "one.json"}).choose("aa").source == "two.json"


def test_a_source_that_can_not_be_one_is_refused_at_once() -> None:
    """A configuration error, before any file is opened."""
    with pytest.raises(VocabularyError, match=r"'cl100k' is neither 'qwen3\.5' nor"):
        TokenizerRegistry({"gpt-4": "cl100k"})
    assert issubclass(VocabularyError, ConfigError)


def test_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    """`base` is the folder of weir.toml; a hint behind # stays."""
    write_ranks(tmp_path / "small.tiktoken")
    registry = TokenizerRegistry({"small": "small.tiktoken#qwen2"}, base=tmp_path)
    assert registry.choose("small").source == f"{tmp_path / 'small.tiktoken'}#qwen2"
    assert registry.vocabulary("small").count("hello") == 1


def test_nothing_is_loaded_before_it_is_needed_and_then_once(tmp_path: Path) -> None:
    """Sixteen threads ask at the same time and get the same object."""
    registry = TokenizerRegistry({"small*": str(write_gguf(tmp_path / "small.gguf"))})
    assert registry.loaded("small") is None
    start, found = threading.Barrier(16), list[Vocabulary]()

    def ask() -> None:
        start.wait()
        found.append(registry.vocabulary("small-1"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len({id(vocabulary) for vocabulary in found}) == 1
    assert registry.loaded("small") is found[0]


def test_warming_finds_a_bad_file_at_the_start(tmp_path: Path) -> None:
    """All configured files are tried; one that was mended is read the next time."""
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF")
    registry = TokenizerRegistry({"small": str(path)})
    with pytest.raises(VocabularyError, match=r"small\.gguf"):
        registry.warm([])
    write_gguf(path)
    registry.warm([])
    assert registry.loaded("small") is not None


def test_the_built_in_vocabulary_counts_for_its_models() -> None:
    """Without any configuration."""
    registry = TokenizerRegistry()
    registry.warm(["Qwen/Qwen3.5-9B"])
    loaded = registry.loaded("qwen3.5-4b")
    assert loaded is not None
    assert loaded.count("Hello!") == 2
