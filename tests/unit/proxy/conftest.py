"""The built-in vocabulary, loaded once: what a cut stream delivered is counted with it."""

import pytest

from billing.tokens.vocabulary import Vocabulary, load


@pytest.fixture(scope="session")
def qwen() -> Vocabulary:
    """Qwen3.5's vocabulary, from the installed wheel."""
    return load("qwen3.5")
