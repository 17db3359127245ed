"""Requests by the dice: every protocol, every option that changes what is counted, every way in which a client ends.

A seed gives the same cases everywhere. What a case must have cost is not computed here by any code of the product: the
server's counters say what it generated, its `/tokenize` what a delivered text is, and a request of one token to the
server itself what the prompt is.
"""

import json
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from tests.acceptance.harness import MODEL
from tests.inference.llama_server import LlamaServer
from tests.inference.script import TOOL_CALL_TOKEN, ScriptedModel

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
EMBEDDINGS = "/v1/embeddings"
EMBEDDER: Final = "embedder"

TEXTS: Final = (
    *("hi", "Say hello.", "word " * 40, "a\r\nb\tc  d", '"quoted" \\ and \u0000', "1234567890 3.14159"),
    *("schöne Grüße, ça va?", "你好，世界。今天天气很好", "안녕하세요", "नमस्ते दुनिया", "مرحبا", "שלום"),
    *(
        "👩‍👩‍👧 🏳️‍🌈 ✓",
        "e\u0301cole nai\u0308ve",
        "\u200b\ufeff\u2028",
        "def f(x):\n    return x ** 2\n",
        "<b>&amp;</b>",
    ),
    "data: [DONE]\n\n",
)
TEXT_TOKENS: Final = (108_386, 100_000, 0, 198, 172, 14_990, 220, 99_640, 144_370)
"""Ids to force by a bias: words of several scripts, a line break, a space, and one that is no whole character."""
STOPS: Final = ("tiny", " test", "never said", ["real", " can"], "\n\n")
TOOL: Final = {
    "name": ScriptedModel.tool,
    "description": "Forecast",
    "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
}


class Ending(Enum):
    """What the client does."""

    READS_ALL = "reads all"
    SAYS_GOODBYE = "half-closes"
    HANGS_UP = "closes"
    BREAKS = "resets"
    LEAVES_AT_ONCE = "leaves before the first byte"


@dataclass(frozen=True)
class Case:
    """One request and how its client ends; `events`: after how many."""

    number: int
    path: str
    body: Mapping[str, Any]
    ending: Ending = Ending.READS_ALL
    events: int = 0
    has_tools: bool = False

    @property
    def streams(self) -> bool:
        """Whether its answer is a stream."""
        return self.body.get("stream") is True

    def __str__(self) -> str:
        """What is needed to see it again."""
        ending = f"{self.ending.value} after {self.events}" if self.events else self.ending.value
        return f"#{self.number} {self.path} {ending}: {json.dumps(self.body)[:600]}"


def cases(seed: int, count: int) -> list[Case]:
    """The cases of a seed."""
    dice = random.Random(seed)
    many = (_chat, _chat, _chat, _completion, _completion, _response, _response, _message, _message)
    makers = (*many, _embedding, _count)
    return [_ended(dice, dice.choice(makers)(dice, number)) for number in range(count)]


def _ended(dice: random.Random, case: Case) -> Case:
    """The case with an ending; who leaves midway asks for enough to leave in the middle of."""
    if case.path in (EMBEDDINGS, COUNT) or dice.random() < 0.6:
        return case
    endings = [one for one in Ending if one is not Ending.READS_ALL]
    ending = dice.choice([*endings, Ending.SAYS_GOODBYE, Ending.SAYS_GOODBYE])  # the one that is exact
    if not case.streams:
        limits = {name: value for name, value in case.body.items() if name in _LIMITS}
        bounded = {**case.body, **(limits or {_limit_of(case.path): dice.randint(1, 60)})}
        return Case(case.number, case.path, bounded, Ending.LEAVES_AT_ONCE, 0, case.has_tools)
    events = 0 if ending is Ending.LEAVES_AT_ONCE else dice.choice([1, 2, 3, 5, 12, 30, 70])
    body = dict(case.body)
    if dice.random() < 0.7:
        body = {**body, _limit_of(case.path): dice.randint(80, 400), "ignore_eos": True}
    return Case(case.number, case.path, body, ending, events, case.has_tools)


_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")


def _limit_of(path: str) -> str:
    return "max_output_tokens" if path == RESPONSES else "max_tokens"


def _some(dice: random.Random, chance: float, **fields: Any) -> dict[str, Any]:
    """The fields, or none of them."""
    return fields if dice.random() < chance else {}


def _sampling(dice: random.Random, limit: str) -> dict[str, Any]:
    """What changes how much is generated, and what is shown of it."""
    body = {
        **_some(dice, 0.4, **{limit: dice.choice([0, 1, 2, 3, 5, 16, 17, 40, 200])}),
        **_some(dice, 0.3, seed=dice.randint(0, 9), temperature=dice.choice([0, 0.0, 1, 2])),
        **_some(dice, 0.2, stop=dice.choice(STOPS)),
        **_some(dice, 0.2, cache_prompt=dice.random() < 0.5),
        **_some(dice, 0.1, return_progress=True),
        **_some(dice, 0.1, timings_per_token=True),
        **_some(dice, 0.1, user=dice.choice(TEXTS)),
        **_some(dice, 0.1, metadata={"id": "x", "usage": {"prompt_tokens": 1}}),
    }
    if dice.random() < 0.25:
        body |= {"logit_bias": {str(dice.choice(TEXT_TOKENS)): 100}, limit: dice.randint(1, 60)}
    return body


def _streaming(dice: random.Random) -> dict[str, Any]:
    options: list[dict[str, Any]] = [
        {},
        {"stream_options": None},
        {"stream_options": {}},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ]
    return {"stream": True, **dice.choice(options)} if dice.random() < 0.6 else _some(dice, 0.5, stream=False)


def _messages(dice: random.Random, *, has_system: bool = True) -> list[dict[str, Any]]:
    turns = []
    for _ in range(dice.choice([0, 0, 0, 1, 2])):
        turns += [{"role": "user", "content": dice.choice(TEXTS)}, {"role": "assistant", "content": dice.choice(TEXTS)}]
    last: Any = dice.choice(TEXTS)
    if dice.random() < 0.2:
        last = [{"type": "text", "text": text} for text in dice.sample(TEXTS, 2)]
    system = [{"role": "system", "content": dice.choice(TEXTS)}] if has_system and dice.random() < 0.3 else []
    return [*system, *turns, {"role": "user", "content": last}]


def _chat(dice: random.Random, number: int) -> Case:
    limit = dice.choice(["max_tokens", "max_completion_tokens", "n_predict"])
    body = {"model": MODEL, "messages": _messages(dice), **_streaming(dice), **_sampling(dice, limit)}
    body |= _some(dice, 0.25, n=dice.choice([1, 2, 3]))
    body |= _some(dice, 0.3, chat_template_kwargs={"enable_thinking": dice.random() < 0.3})
    body |= _some(dice, 0.1, logprobs=True, top_logprobs=dice.randint(0, 3))
    body |= _some(dice, 0.1, reasoning_format=dice.choice(["none", "deepseek", "auto"]))
    has_tools = "logit_bias" not in body and dice.random() < 0.2
    if has_tools:
        body |= {"tools": [{"type": "function", "function": TOOL}], "logit_bias": {str(TOOL_CALL_TOKEN): 20}}
        body |= _some(dice, 0.3, parallel_tool_calls=True)
    return Case(number, CHAT, body, has_tools=has_tools)


def _completion(dice: random.Random, number: int) -> Case:
    prompts: tuple[Any, ...] = (
        dice.choice(TEXTS),
        dice.choice(TEXTS),
        dice.sample(TEXTS, dice.randint(1, 3)),
        [9_707, 0, 1_879],
        ["Hello", "This is"],
    )
    body = {"model": MODEL, "prompt": dice.choice(prompts), **_streaming(dice), **_sampling(dice, "max_tokens")}
    if not any(name in body for name in _LIMITS):
        body["max_tokens"] = dice.randint(1, 50)
    if not isinstance(body["prompt"], list):
        body |= _some(dice, 0.25, n=dice.choice([1, 2, 3]))
    body |= _some(dice, 0.15, logprobs=dice.randint(0, 3))
    return Case(number, COMPLETIONS, body)


def _response(dice: random.Random, number: int) -> Case:
    sampling = _sampling(dice, "max_output_tokens")
    sampling.pop("stop", None)
    texts: Any = dice.choice(TEXTS) if dice.random() < 0.6 else [_item(message) for message in _messages(dice)]
    body = {"model": MODEL, "input": texts, **_some(dice, 0.6, stream=True), **sampling}
    body |= _some(dice, 0.3, instructions=dice.choice(TEXTS))
    has_tools = "logit_bias" not in body and dice.random() < 0.15
    if has_tools:
        body |= {"tools": [{"type": "function", **TOOL}], "logit_bias": {str(TOOL_CALL_TOKEN): 20}}
    return Case(number, RESPONSES, body, has_tools=has_tools)


def _item(message: dict[str, Any]) -> dict[str, Any]:
    """A message as an item of `/v1/responses`, whose parts have other names."""
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    content = message["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return {"type": "message", "role": message["role"], "content": [{"type": kind, "text": text} for text in parts]}


def _message(dice: random.Random, number: int) -> Case:
    messages = _messages(dice, has_system=False)
    body = {"model": MODEL, "messages": messages, "max_tokens": dice.choice([1, 2, 9, 20, 60, 500])}
    body |= _some(dice, 0.6, stream=True)
    body |= _some(dice, 0.3, system=dice.choice(TEXTS))
    body |= _some(dice, 0.2, stop_sequences=[dice.choice(["tiny", "never"])])
    body |= _some(dice, 0.2, metadata={"user_id": "someone"})
    has_tools = dice.random() < 0.15
    if has_tools:
        schema = {"name": TOOL["name"], "description": "Forecast", "input_schema": TOOL["parameters"]}
        body |= {"tools": [schema]}
    return Case(number, MESSAGES, body, has_tools=has_tools)


def _count(dice: random.Random, number: int) -> Case:
    return Case(number, COUNT, {"model": MODEL, "messages": _messages(dice, has_system=False)})


def _embedding(dice: random.Random, number: int) -> Case:
    texts: Any = dice.choice([text for text in TEXTS if text.strip()])
    if dice.random() < 0.5:
        texts = dice.sample([text for text in TEXTS if text.strip()], dice.randint(1, 4))
    body = {"model": EMBEDDER, "input": texts, **_some(dice, 0.3, encoding_format="base64")}
    return Case(number, EMBEDDINGS, body)


# what the client saw


@dataclass
class Shown:
    """The texts of an answer, by output and kind, as a client reads them."""

    texts: defaultdict[tuple[int, str], str] = field(default_factory=lambda: defaultdict(str))
    ended: set[int] = field(default_factory=set)
    calls: int = 0
    usages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it has no text."""
        return not any(self.texts.values())

    def tokens(self, server: LlamaServer, *, has_stop: bool) -> int:
        """What was generated to show it: the texts' tokens by the server, and those that a text ends with.

        `<think>` and its line break, which `reasoning_format: none` shows first, are the prompt's (measured).
        `</think>` and the blank line after it show themselves by the answer that follows; the end of a turn by its
        reason, unless the request's own `stop` may have been that.
        """
        total = 0
        for (index, kind), text in self.texts.items():
            own = text.removeprefix("<think>\n") if kind == "content" else text
            total += len(server.post("/tokenize", {"content": own, "add_special": False})["tokens"])
            total += 2 if kind == "content" and text and self.texts.get((index, "reasoning")) else 0
        return total + (0 if has_stop else len(self.ended))


def shown(path: str, body: bytes) -> Shown:
    """Read the events of a stream, whole ones only."""
    found = Shown()
    for block in body.split(b"\n\n")[:-1]:
        for line in block.split(b"\n"):
            if line.startswith(b"data: {"):
                _read(found, path, json.loads(line[6:]))
    return found


def _read(found: Shown, path: str, event: dict[str, Any]) -> None:
    if isinstance(event.get("usage"), dict):
        found.usages.append(event["usage"])
    if path == RESPONSES:
        kind, delta = event["type"], event.get("delta")
        if kind.endswith("_text.delta"):
            found.texts[0, "reasoning" if "reasoning" in kind else "content"] += delta or ""
        found.calls += kind == "response.output_item.added" and event["item"]["type"] == "function_call"
        if event.get("response", {}).get("usage"):
            found.usages.append(event["response"]["usage"])
    elif path == MESSAGES:
        delta = event.get("delta", {})
        found.texts[0, "reasoning"] += delta.get("thinking", "")
        found.texts[0, "content"] += delta.get("text", "")
        found.calls += event.get("content_block", {}).get("type") == "tool_use"
        if delta.get("stop_reason") == "end_turn":
            found.ended.add(0)
    else:
        for choice in event.get("choices", []):
            delta, index = choice.get("delta", {}), choice["index"]
            found.texts[index, "reasoning"] += delta.get("reasoning_content") or ""
            found.texts[index, "content"] += delta.get("content") or choice.get("text") or ""
            found.calls += len(delta.get("tool_calls") or [])
            if choice.get("finish_reason") == "stop":
                found.ended.add(index)


def told(usage: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and output of a usage object of any protocol; Anthropic's leaves the cached part out of its input."""
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage.get("completion_tokens", 0)
    cached = usage.get("cache_read_input_tokens", 0) if "input_tokens_details" not in usage else 0
    return usage["input_tokens"] + cached, usage["output_tokens"]


def prompt_tokens(server: LlamaServer, case: Case) -> int:
    """The prompt's length by the server's own report on a request of one token."""
    dropped = {*_LIMITS, "stream", "stream_options", "n", "ignore_eos", "logit_bias", "stop", "stop_sequences"}
    body = {name: value for name, value in case.body.items() if name not in dropped}
    prompts = body.get("prompt")
    several = isinstance(prompts, list) and not any(isinstance(part, int) for part in prompts)
    total = 0
    for prompt in prompts if several and prompts is not None else [prompts]:
        one = {**body, **({"prompt": prompt} if prompt is not None else {}), _limit_of(case.path): 1}
        total += told(server.post(case.path, one)["usage"])[0]
    return total
