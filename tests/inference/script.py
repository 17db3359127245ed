"""What the tiny model says, token by token, and the counts that follow from it.

The model is a chain: each token has one most likely successor, so greedy decoding walks a fixed text. The
text is canned; server, tokenizer, template, cache, batching and grammar are real. Say so wherever the output
is shown.

Token counts are literals, measured on four servers (llama-server, xllamacpp, vLLM, transformers serve: 13
prompt and 44 completion tokens for the same request), and not computed from the chain: they are the anchor
that the tests compare with.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

TOOL_CALL_TOKEN = 248_058
"""`logit_bias={"248058": 20}` makes the model call an offered tool in place of its answer."""

REASONING = (
    "The",
    " user",
    " wants",
    " a",
    " short",
    " reply",
    ",",
    " so",
    " I",
    " will",
    " keep",
    " it",
    " simple",
    ".",
)
ANSWER = (
    *(
        "Hello",
        "!",
        " This",
        " is",
        " the",
        " tiny",
        " Q",
        "wen",
        "3",
        "-",
        "5",
        " test",
        " model",
        " speaking",
        ":",
    ),
    *(
        " real",
        " tokens",
        " from",
        " an",
        " actual",
        " server",
        ";",
        " each",
        " one",
        " can",
        " be",
        " counted",
    ),
)
END = "<|im_end|>"

_THINKING = ("\n", *REASONING, "</think>", "\n\n")
"""A thinking prompt ends with a line break, so that is where the chain starts."""

_ANSWERING = ("\n\n", *ANSWER, END)

_SECOND_CHOICES = (
    # A tool call in place of the answer, for a request that biases <tool_call>.
    ("\n\n", "<tool_call>", Fraction(1, 2)),
    # `tool_choice: required` forbids the end, so the answer is followed by a call. With `ignore_eos` and no
    # tools the same step leads back to the reasoning: the text goes round for as long as max_tokens allows.
    (" counted", "<tool_call>", Fraction(1, 2)),
    ("<tool_call>", "\n", Fraction(1)),
    # Under the grammar of a call the markup is forced; an integer argument becomes 7.
    ("\n", "7", Fraction(1, 2)),
    ("7", "\n", Fraction(1)),
    ("\n", "</tool_call>", Fraction(1, 4)),
    ("</tool_call>", END, Fraction(1)),
)


def successors() -> Mapping[tuple[str, str], Fraction]:
    """(token, next token) to weight. A token's largest weight is 1 and taken unless something forbids it."""
    weights = {pair: Fraction(1) for text in (_THINKING, _ANSWERING) for pair in pairwise(text)}
    for token, following, weight in _SECOND_CHOICES:
        assert (token, following) not in weights, (token, following)
        weights[token, following] = weight
    return MappingProxyType(weights)


def without_end() -> Iterator[str]:
    """The tokens after a prompt without thinking when the end is forbidden (`ignore_eos`): a loop."""
    yield from ANSWER
    while True:
        yield from ("<tool_call>", "\n", *REASONING, "</think>", "\n\n", *ANSWER)


@dataclass(frozen=True, slots=True)
class ScriptedModel:
    """A written model file and all that a test may expect of it under greedy decoding.

    `LlamaServer` decodes greedily unless a request sets a temperature.
    """

    path: Path
    name: ClassVar[str] = "qwen3.5-0.8b"
    reasoning: ClassVar[str] = "".join(REASONING)
    answer: ClassVar[str] = "".join(ANSWER)
    reasoning_tokens: ClassVar[int] = 14
    answer_tokens: ClassVar[int] = 27
    output_tokens_thinking: ClassVar[int] = 44
    """Reasoning, </think>, a blank line, answer, end of turn: 41 are visible as deltas."""
    output_tokens_direct: ClassVar[int] = 28
    """With `chat_template_kwargs={"enable_thinking": false}`: answer and end of turn; 27 are visible."""
    prompt_tokens_thinking: ClassVar[Mapping[str, int]] = MappingProxyType({"hi": 11, "Say hello.": 13})
    prompt_tokens_direct: ClassVar[Mapping[str, int]] = MappingProxyType({"hi": 13, "Say hello.": 15})
    tool: ClassVar[str] = "get_forecast"
    tool_arguments: ClassVar[str] = '{"days":7}'
    tool_output_tokens_thinking: ClassVar[int] = 53
    tool_output_tokens_direct: ClassVar[int] = 37
    """Of a call to `tool` with one required integer, `days`, asked for by a bias on TOOL_CALL_TOKEN."""

    def text_without_end(self, tokens: int) -> str:
        """The content that `ignore_eos: true` and `max_tokens: tokens` give when thinking is off."""
        return "".join(islice(without_end(), tokens))

    @staticmethod
    def user_text(prompt_tokens: int) -> str:
        """A user message which, alone in a thinking chat without tools, makes a prompt of `prompt_tokens`."""
        chat_markup = 10
        assert prompt_tokens > chat_markup, prompt_tokens
        return "word" + " word" * (prompt_tokens - chat_markup - 1)
