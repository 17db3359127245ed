"""pytest fixtures for real inference; load with `pytest_plugins = ["tests.inference.fixtures"]`.

One server per test process: it starts in about two seconds, holds about 200 MB, and every xdist worker has
its own, so its counters are touched by one test at a time. A test that kills its server starts one itself:
`with LlamaServer() as s`.
"""

from collections.abc import Iterator

import pytest

from tests.inference.llama_server import LlamaServer
from tests.inference.script import ScriptedModel
from tests.inference.tiny_model import cached_model


@pytest.fixture(scope="session")
def scripted_model() -> ScriptedModel:
    """The tiny model's file and what it says."""
    return cached_model()


@pytest.fixture(scope="session")
def llama(scripted_model: ScriptedModel) -> Iterator[LlamaServer]:
    """A real llama.cpp server with eight slots of 8,192 tokens."""
    with LlamaServer(scripted_model, parallel=8, ctx=65_536) as server:
        yield server
