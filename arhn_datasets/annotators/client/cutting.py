"""Whether a server has cut a prompt by itself, which nothing in its reply says: Ollama, and others like it.

Then the instructions or the passage were not read, and the reply is evidence of nothing. What tells is the context that
a server declares, and the number of tokens that it counted.
"""

from __future__ import annotations

import re

from arhn_datasets.annotators.client.contract import TEMPLATE_TOKENS, ChatRequest, Completion
from arhn_datasets.errors import PromptTooLong

LEAST_CONTEXT = 256  # below, a number of tokens is no context but an odd count: a constant, or what was in no cache
USUAL, HIGH, HIGHEST = 4.0, 5.5, 7.0  # characters in a token: of a text, of hardly any, of none
ROUND = 1024  # tokens; most contexts are a multiple
DIFFERENT = 1.25  # two lengths
_RUNS = re.compile(r"(\W)\1{3,}|\s+")


class Cutting:
    """What is known of the context of one server: as it says, and as its counts of tokens show."""

    def __init__(self) -> None:
        self.context: int | None = None
        """The tokens of a prompt and its reply together, where the server says so."""
        self._cut_at: int | None = None
        self._most, self._least_characters = 0, 0

    def foresee(self, request: ChatRequest) -> None:
        """Raise PromptTooLong for a prompt that cannot fit in any tokenizer's count, before it is paid for."""
        if self.context is not None:
            fits = max(1, self.context - request.max_tokens - TEMPLATE_TOKENS)
            if request.characters() > HIGH * fits:
                raise _too_long(request, f"The server has a context of {self.context:,} tokens", fits)

    def check(self, request: ChatRequest, completion: Completion) -> None:
        """Raise PromptTooLong where the server has not read the whole prompt, or had no room for its reply."""
        tokens = completion.prompt_tokens
        if tokens is None:
            return
        if self.context is not None and tokens + (completion.completion_tokens or 0) >= self.context - 1:
            said = f"The server's context of {self.context:,} tokens was full"
            raise _too_long(request, said, self.context - request.max_tokens)
        if tokens >= LEAST_CONTEXT and self._is_cut(request, tokens):
            self._cut_at = tokens
            raise _too_long(request, f"The server cut the prompt by itself: it read {tokens:,} tokens", tokens)

    def _is_cut(self, request: ChatRequest, tokens: int) -> bool:
        characters = request.characters()
        if self._cut_at is not None and tokens > self._cut_at:
            self._cut_at = None  # it was no limit
        if tokens > self._most:
            self._most, self._least_characters = tokens, characters
        elif tokens == self._most:
            fewer, more = sorted((characters, self._least_characters))
            self._least_characters = fewer
            if more > DIFFERENT * fewer:  # it stands at one value
                return True
        if tokens == self._cut_at:
            return True
        if characters <= HIGH * tokens:
            return False
        if not tokens % ROUND or not (tokens + request.max_tokens) % ROUND:
            return True
        text = "".join(message["content"] for message in request.messages)
        return len(_RUNS.sub(" ", text)) > HIGHEST * tokens


def _too_long(request: ChatRequest, said: str, fits: int) -> PromptTooLong:
    characters = request.characters()
    ratio = fits * USUAL / characters
    return PromptTooLong(f"{said}; the prompt has {characters:,} characters", ratio if 0 < ratio < 1 else None)
