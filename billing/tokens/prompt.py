"""How many tokens a request's prompt has, before the server has said so: for holds, and where no usage ever
comes.

`/v1/completions`, embeddings and raw Ollama prompts are exact. A chat is exact for Qwen3.5 when it is text:
the rules of its template are followed here, tools and tool calls included (compared with llama.cpp and vLLM).
For other models, whose template is not known, it is an estimate, and so it is wherever `media_parts` is not
0. Nothing raises: an odd body counts as what can be made of it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from billing.tokens.conversation import Call, Conversation, Turn, read_conversation, to_json
from billing.tokens.vocabulary import Dialect, Vocabulary

TOOLS_PREAMBLE_TOKENS: Final = 19
TOOLS_EPILOGUE_TOKENS: Final = 180
TOOLS_EPILOGUE_BEFORE_SYSTEM_TOKENS: Final = 181
"""What Qwen3.5's template says around the list of tools, measured: up to the line of the first tool, and
after the last one, without and with a system message behind it."""

PLAIN_TURN_TOKENS: Final = 5
"""Markup around a message in a template that is not known: Llama 3 has 5, ChatML 5, gpt-oss 4."""

RERANK_PAIR_TOKENS: Final = 4
"""Markup around a query and a document."""

_RAW_KEY: Final = MappingProxyType({"/v1/completions": "prompt", "/v1/embeddings": "input", "/api/embed": "input"})
"""Endpoints that read a prompt as it is, without a template."""

_WHITE: Final = " \t\n\r\x0b\x0c"
"""What llama.cpp's template engine trims; Python's `str.strip` would take more."""


def count_prompt(vocabulary: Vocabulary, endpoint: str, body: object, *, nfc: bool) -> int:
    """Tokens of the prompt in a parsed body; `nfc`: whether the server normalises prompts
    (`server_normalizes`)."""
    if not isinstance(body, dict):
        return 0
    raw_key = "prompt" if endpoint == "/api/generate" and body.get("raw") is True else _RAW_KEY.get(endpoint)
    if raw_key is not None:
        return _count_raw(vocabulary, body.get(raw_key), nfc=nfc)
    if endpoint == "/v1/rerank":
        return _count_rerank(vocabulary, body, nfc=nfc)
    conversation = read_conversation(endpoint, body)
    if vocabulary.dialect is Dialect.OTHER:
        return vocabulary.prompt_extra + _count_plain(vocabulary, conversation, nfc=nfc)
    return vocabulary.prompt_extra + _count_chatml(vocabulary, conversation, nfc=nfc)


def media_parts(endpoint: str, body: object) -> int:
    """Pictures, recordings and files in a body, whose tokens only the server knows. 0: the prompt is text."""
    return read_conversation(endpoint, body).media if isinstance(body, dict) else 0


def _count_raw(vocabulary: Vocabulary, prompt: object, *, nfc: bool) -> int:
    """A prompt without template: a text, token ids, or a list of either; each of a list is a prompt of its
    own."""
    if isinstance(prompt, str):
        return vocabulary.prompt_extra + vocabulary.count(prompt, nfc=nfc)
    if not isinstance(prompt, list):
        return 0
    total = 0
    for item in prompt:
        if isinstance(item, str):
            total += vocabulary.prompt_extra + vocabulary.count(item, nfc=nfc)
        else:
            total += _count_ids(item)
    return total


def _count_ids(item: object) -> int:
    if isinstance(item, list):
        return sum(isinstance(token, int) for token in item)
    return int(isinstance(item, int))


def _count_rerank(vocabulary: Vocabulary, body: Mapping[str, object], *, nfc: bool) -> int:
    """The query is read again with each document."""
    query, documents = body.get("query"), body.get("documents", body.get("texts"))
    per_pair = RERANK_PAIR_TOKENS + (vocabulary.count(query, nfc=nfc) if isinstance(query, str) else 0)
    total = 0
    for document in documents if isinstance(documents, list) else ():
        text = document.get("text") if isinstance(document, dict) else document
        total += per_pair + (vocabulary.count(text, nfc=nfc) if isinstance(text, str) else 0)
    return total


def _count_plain(vocabulary: Vocabulary, conversation: Conversation, *, nfc: bool) -> int:
    texts = [*conversation.tools]
    for turn in conversation.turns:
        texts.append(turn.content)
        texts.extend(f"{call.name}{to_json(call.arguments)}" for call in turn.calls)
    markup = PLAIN_TURN_TOKENS * (len(conversation.turns) + conversation.opens_answer)
    return markup + sum(vocabulary.count(text, nfc=nfc) for text in texts)


def _count_chatml(vocabulary: Vocabulary, conversation: Conversation, *, nfc: bool) -> int:
    """The whole conversation is written out and counted at once, so that no boundary between parts is
    miscounted.

    Only the text around the tools, which is Qwen's and long, is a number. It ends in a newline, where text
    always splits.
    """
    turns, total = conversation.turns, 0
    if conversation.tools:
        total += TOOLS_PREAMBLE_TOKENS + sum(vocabulary.count(f"{tool}\n", nfc=nfc) for tool in conversation.tools)
        system = turns[0].content.strip(_WHITE) if turns and turns[0].role == "system" else ""
        total += TOOLS_EPILOGUE_BEFORE_SYSTEM_TOKENS if system else TOOLS_EPILOGUE_TOKENS
        total += vocabulary.count(f"{system}<|im_end|>\n", nfc=nfc)
        turns = turns[1:] if turns and turns[0].role == "system" else turns
    text = "".join(_write(turns, conversation, vocabulary.dialect))
    return total + vocabulary.count(text, nfc=nfc)


def _write(turns: tuple[Turn, ...], conversation: Conversation, dialect: Dialect) -> Iterator[str]:
    """The pieces of the templated prompt."""
    last_query = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=-1)
    prefills = bool(turns) and turns[-1].role == "assistant"
    for at, turn in enumerate(turns):
        is_final = at + 1 == len(turns)
        if turn.role == "tool":
            is_first = at == 0 or turns[at - 1].role != "tool"
            is_last = is_final or turns[at + 1].role != "tool"
            yield "<|im_start|>user" if is_first else ""
            yield f"\n<tool_response>\n{turn.content.strip(_WHITE)}\n</tool_response>"
            yield "<|im_end|>\n" if is_last else ""
            continue
        yield f"<|im_start|>{turn.role}\n"
        if turn.role == "assistant":
            yield from _write_answer(turn, dialect, keeps_reasoning=at > last_query)
        else:
            yield turn.content.strip(_WHITE)
        # llama.cpp lets the model continue an answer that the conversation ends with.
        yield "" if prefills and is_final else "<|im_end|>\n"
    if conversation.opens_answer and not prefills:
        yield "<|im_start|>assistant\n"
        yield _opening(dialect, is_thinking=conversation.is_thinking)


def _opening(dialect: Dialect, *, is_thinking: bool) -> str:
    """What the template puts into the model's mouth: Qwen3.5 always opens, Qwen3 only to say that it does not
    think."""
    if not is_thinking:
        return "<think>\n\n</think>\n\n"
    return "<think>\n" if dialect is Dialect.QWEN35 else ""


def _write_answer(turn: Turn, dialect: Dialect, *, keeps_reasoning: bool) -> Iterator[str]:
    """An earlier answer. Its reasoning is kept only behind the last question, while tools are being used."""
    reasoning, content = turn.reasoning.strip(_WHITE), turn.content.strip(_WHITE)
    if "</think>" in content and not turn.reasoning:
        before, _, content = content.rpartition("</think>")
        reasoning, content = before.rpartition("<think>")[2].strip(_WHITE), content.lstrip("\n")
    if keeps_reasoning and (reasoning or dialect is Dialect.QWEN35):
        yield f"<think>\n{reasoning}\n</think>\n\n"
    yield content
    for nth, call in enumerate(turn.calls):
        yield "\n" if nth else "\n\n" if content.strip(_WHITE) else ""
        yield from _write_call(call)


def _write_call(call: Call) -> Iterator[str]:
    yield f"<tool_call>\n<function={call.name}>\n"
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    for name, value in arguments.items():
        yield f"<parameter={name}>\n{_argument(value)}\n</parameter>\n"
    if isinstance(call.arguments, str):
        yield call.arguments
    yield "</function>\n</tool_call>"


def _argument(value: object) -> str:
    """A template prints plain values as Python does (True, None) and nested ones as JSON."""
    if isinstance(value, str):
        return value
    return str(value) if value is None or isinstance(value, bool) else to_json(value)
