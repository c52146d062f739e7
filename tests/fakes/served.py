"""Emulators as most tests want them: a named model with small limits, and replies of the test's own."""

from __future__ import annotations

from arhn_datasets.testing import Emulator, Fault

CHAT = "/v1/chat/completions"
MODEL, REVISION = "some/model", "0123abcd"
NO_INFO = Fault(kind="info_missing")  # what makes an OpenAI-compatible server of it


def served(**options):
    """An emulator of that model; ``reply`` is by default the lexical baseline's."""
    limits = {"max_concurrent_requests": 32, "max_input_tokens": 4095, "max_total_tokens": 4096}
    return Emulator(**{"model": MODEL, "revision": REVISION, **limits, **options})


def said(prompt):
    """The last message in a prompt as the emulator templates it."""
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>\n")[0]


def always(make, path=CHAT):
    """An ``intercept`` that sends what ``make()`` gives for every request of a path.

    That may be a coroutine function, too: it gets the request.
    """
    return when(lambda _: True, make, path)


def once(make, path=CHAT):
    """The same for the first request alone."""
    return when(lambda request: request.number == 1, make, path)


def when(strikes, make, path=CHAT):
    """The same for the requests that ``strikes`` picks; path None is any."""

    def intercept(request):
        if path not in (None, request.path) or not strikes(request):
            return None
        made = make()
        return made(request) if callable(made) else made

    return intercept


def completion(text, finish_reason="stop"):
    """The body of a chat completion as TGI serialises it, with any text, None included."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
