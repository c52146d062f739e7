"""What a generation looks like on the wire: the replies of each route, whole and as the events of a stream.

Server contract: text-generation-inference 3.3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arhn_datasets.testing.parameters import is_sampled
from arhn_datasets.testing.tokens import token_id

Body = dict[str, Any]

VERSION = "3.3.6-dev0"
FINGERPRINT = f"{VERSION}-native"
ON_EVERY_REPLY = {
    "vary": "origin, access-control-request-method, access-control-request-headers",
    "access-control-allow-origin": "*",
}
FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop_sequence"}


@dataclass(kw_only=True, eq=False)
class Generation:
    """A prompt with its parameters, and what was generated; ``reason`` says in TGI's words how it ended."""

    prompt: str
    parameters: Body
    inputs: int = 0
    pieces: Sequence[str] = field(default_factory=list)
    tokens: int = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """The text as it is sent, stop string included."""
        return "".join(self.pieces)

    @property
    def finish(self) -> str:
        """How it ended in OpenAI's words, among which a stop string is none."""
        return FINISH[self.reason]

    @property
    def seed(self) -> int | None:
        """The seed that was drawn with; none for a greedy reply."""
        if not is_sampled(self.parameters):
            return None
        given: int | None = self.parameters.get("seed")
        return token_id(self.prompt) if given is None else given

    def steps(self) -> Iterator[tuple[str, bool]]:
        """The text of each token, an empty one for the end of the text, and whether it is the last."""
        for at in range(1, self.tokens + 1):
            yield self.pieces[at - 1] if at <= len(self.pieces) else "", at == self.tokens


def chat_completion(done: Generation, model: str, *, logprobs: bool = False) -> Body:
    """The reply of ``/v1/chat/completions``; its id is empty."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": done.text},
        "logprobs": _logprobs(done.pieces) if logprobs else None,
        "finish_reason": done.finish,
    }
    return {**_head("chat.completion", model), "choices": [choice], "usage": _usage(done)}


def chat_chunks(done: Generation, model: str, *, usage: bool, logprobs: bool = False) -> list[Body]:
    """The events of a streamed chat reply, one for each token."""
    head = _head("chat.completion.chunk", model)
    chunks = []
    for piece, last in done.steps():
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": piece},
            "logprobs": _logprobs([piece]) if logprobs else None,
            "finish_reason": done.finish if last else None,
        }
        chunks.append({**head, "choices": [choice], "usage": None})
    return [*chunks, {**head, "choices": [], "usage": _usage(done)}] if usage else chunks


def text_completion(done: Sequence[tuple[int, Generation]], model: str) -> Body:
    """The reply of ``/v1/completions``: the choices in the order in which they were finished."""
    choices = [_text_choice(index, one.text, one.finish) for index, one in done]
    return {**_head("text_completion", model), "choices": choices, "usage": _usage(*(one for _, one in done))}


def completion_chunks(done: Generation, model: str) -> list[Body]:
    """The events of a streamed completion."""
    head = _head("text_completion", model)
    return [
        {**head, "choices": [_text_choice(0, piece, done.finish if last else None)]} for piece, last in done.steps()
    ]


def generate_response(done: Generation, *, full_text: bool) -> Body:
    """The reply of ``/generate``; details only where they were asked for."""
    reply: Body = {"generated_text": (done.prompt if full_text else "") + done.text}
    if done.parameters.get("details") or done.parameters.get("decoder_input_details"):
        reply["details"] = {**_details(done), "prefill": [], "tokens": [_token(piece) for piece in done.pieces]}
    return reply


def generate_chunks(done: Generation, *, full_text: bool) -> list[Body]:
    """The events of ``/generate_stream``; the last one has the whole text."""
    chunks: list[Body] = []
    for at, (piece, last) in enumerate(done.steps(), 1):
        chunk: Body = {"index": at, "token": _token(piece), "generated_text": None, "details": None}
        if last:
            chunk["generated_text"] = (done.prompt if full_text else "") + done.text
            if done.parameters.get("details"):
                chunk["details"] = {**_details(done), "input_length": done.inputs}
        chunks.append(chunk)
    return chunks


def _head(kind: str, model: str) -> Body:
    created = int(time.time())
    return {"object": kind, "id": "", "created": created, "model": model, "system_fingerprint": FINGERPRINT}


def _usage(*done: Generation) -> Body:
    prompt, new = sum(one.inputs for one in done), sum(one.tokens for one in done)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _text_choice(index: int, text: str, finish: str | None) -> Body:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _details(done: Generation) -> Body:
    return {"finish_reason": done.reason, "generated_tokens": done.tokens, "seed": done.seed}


def _token(piece: str) -> Body:
    return {"id": token_id(piece), "text": piece or "<|im_end|>", "logprob": -0.125, "special": not piece}


def _logprobs(pieces: Sequence[str]) -> Body:
    each: list[Mapping[str, Any]] = [{"token": piece, "logprob": -0.125} for piece in pieces]
    return {"content": [{**one, "top_logprobs": [one]} for one in each]}


def timing_headers(done: Generation, *, total: float, validation: float, queue: float, inference: float) -> Body:
    """The ``x-*`` headers of a reply that is no stream, from times in seconds."""
    times = {
        "total-time": total,
        "validation-time": validation,
        "queue-time": queue,
        "inference-time": inference,
        "time-per-token": inference / max(1, done.tokens),
    }
    return {
        "x-compute-type": "cpu+emulated",
        "x-compute-time": str(total),
        "x-compute-characters": str(len(done.prompt)),
        **{f"x-{name}": str(int(seconds * 1000)) for name, seconds in times.items()},
        "x-prompt-tokens": str(done.inputs),
        "x-generated-tokens": str(done.tokens),
    }
