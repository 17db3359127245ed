"""The paths that reach a model server, and what tells them apart. Only these do (DESIGN I11): any other path is 404.

`FREE` ones pass through and cost nothing, by decision and not by accident: they generate nothing and read a prompt
only to count it. `OLLAMA` ones exist on Ollama, and on SGLang which copies them; another server's answer under the
same path would be of another shape (some llama.cpp builds serve an OpenAI chat under `/api/chat`), so they are not
sent there.
"""

from typing import Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
EMBEDDINGS: Final = "/v1/embeddings"
RERANK: Final = "/v1/rerank"
OLLAMA_CHAT: Final = "/api/chat"
OLLAMA_GENERATE: Final = "/api/generate"
OLLAMA_EMBED: Final = "/api/embed"

OPENAI_COMPLETIONS: Final = frozenset({CHAT, COMPLETIONS})
OLLAMA: Final = frozenset({OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_EMBED})
PROMPT_ONLY: Final = frozenset({EMBEDDINGS, RERANK, OLLAMA_EMBED, COUNT_TOKENS})
"""They read prompts and generate nothing, and are never streamed."""

FREE: Final = frozenset({COUNT_TOKENS})
ALL: Final = OPENAI_COMPLETIONS | OLLAMA | PROMPT_ONLY | {RESPONSES, MESSAGES}

_OLLAMA_KINDS: Final = frozenset({"ollama", "sglang"})


def is_served(endpoint: str, kind: str) -> bool:
    """Tell whether a request for this path may be sent to an upstream of this kind (`Server.kind`).

    Where an upstream should have a path and lacks it, its own 404 is the answer.
    """
    return endpoint not in OLLAMA or kind in _OLLAMA_KINDS
