"""Model name → vocabulary. Each vocabulary is loaded once, when it is first needed, by whichever thread needs
it.

Loading Qwen3.5 takes about half a second and 100 MB, so nothing is loaded at import, and code on an event
loop first asks `loaded()` and has `vocabulary()` run in a worker thread where that is None. One registry per
process, made by the composition root: it is the only state of this package.

A model that no pattern matches and whose name is not Qwen3.5's is counted with Qwen3.5's vocabulary and says
so (`is_exact=False`): an approximate count beside the upstream's is better than none, and must not be sold as
exact.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Final

from billing.tokens import qwen35
from billing.tokens.errors import VocabularyError
from billing.tokens.vocabulary import SUFFIXES, Vocabulary, load

_QWEN35_NAME: Final = re.compile(r"qwen[-_ ]?3[._]?[56](?![0-9b])")
"""Qwen/Qwen3.5-9B, qwen3.5:9b, unsloth/Qwen3.6-35B-A3B-GGUF, qwen35-4b, qwen3_5; not Qwen3-5B or Qwen-35B."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which vocabulary counts for a model, and whether it is known to be the model's own."""

    source: str
    is_exact: bool


class _Slot:
    """A vocabulary that is loaded at most once. A failed load is not kept: the file may be mended
    meanwhile."""

    __slots__ = ("_lock", "_source", "found")

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = Lock()
        self.found: Vocabulary | None = None

    def get(self) -> Vocabulary:
        """The vocabulary; whoever comes while another thread loads it waits for that."""
        if self.found is None:
            with self._lock:
                if self.found is None:
                    self.found = load(self._source)
        return self.found


class TokenizerRegistry:
    """The `[tokenizers]` section: patterns of model names (`*`, `?`, any case) → a built-in name or a path.

    The most specific pattern wins: a plain name before any pattern, then the one with more literal
    characters, then the one that is written first. Raises VocabularyError at once for a source that can not
    be one; files are opened later.
    """

    def __init__(self, patterns: Mapping[str, str] | None = None, *, base: Path | None = None) -> None:
        sources = {pattern.lower(): _resolve(source, base or Path()) for pattern, source in (patterns or {}).items()}
        self._patterns = tuple(sorted(sources.items(), key=lambda item: _breadth(item[0])))
        self._slots = {source: _Slot(source) for source in (*sources.values(), qwen35.NAME)}

    def choose(self, model: str) -> Choice:
        """The vocabulary for a model name. Pure; costs some microseconds."""
        name = model.lower()
        for pattern, source in self._patterns:
            if fnmatchcase(name, pattern):
                return Choice(source, is_exact=True)
        return Choice(qwen35.NAME, is_exact=_QWEN35_NAME.search(name) is not None)

    def vocabulary(self, model: str) -> Vocabulary:
        """The loaded vocabulary for a model name. May block for seconds the first time; raises
        VocabularyError."""
        return self._slots[self.choose(model).source].get()

    def loaded(self, model: str) -> Vocabulary | None:
        """The vocabulary if it is there already. Never blocks."""
        return self._slots[self.choose(model).source].found

    def warm(self, models: Iterable[str]) -> None:
        """Loads what these models and all patterns need, so that a bad file is found at the start."""
        needed = [self.choose(model).source for model in models]
        for source in dict.fromkeys([*needed, *(source for _, source in self._patterns)]):
            self._slots[source].get()


def _breadth(pattern: str) -> tuple[bool, int]:
    """Sort key: narrow patterns first. The sort is stable, so equal ones keep the order of the file."""
    wildcards = pattern.count("*") + pattern.count("?")
    return wildcards > 0, wildcards - len(pattern)


def _resolve(source: str, base: Path) -> str:
    if source == qwen35.NAME:
        return source
    path, mark, hint = source.partition("#")
    if Path(path).suffix.lower() not in SUFFIXES:
        raise VocabularyError(f"tokenizer {source!r} is neither {qwen35.NAME!r} nor a {', '.join(SUFFIXES)} file")
    return f"{base / path}{mark}{hint}"
