"""What generates in this process, each a class: transformers, in batches, and vLLM, which fills its batches itself.

A generator works in a thread of its own. It gives each reply away as soon as it has it, so that replies are kept when a
run ends in the middle of a batch, and it stops where nobody waits any more.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, ClassVar

from arhn_datasets.annotators.client.contract import TEMPLATE_TOKENS, ChatRequest, Completion
from arhn_datasets.annotators.client.pool import Statistics
from arhn_datasets.annotators.client.refusals import encodable, excerpt
from arhn_datasets.errors import AnnotatorError, MissingDependencyError, PromptTooLong, RequestRejected

# For a model that was not trained to chat: the texts alone.
PLAIN = "{{ (messages | map(attribute='content') | join('\n\n')) ~ '\n' }}"


@dataclass
class LocalStatistics(Statistics):
    """What was asked so far, and whether the model is still being loaded."""

    loading: bool = False


class Asked:
    """A request that waits for its reply on the background loop; what is told of it comes from another thread."""

    def __init__(self, request: ChatRequest, statistics: Statistics) -> None:
        self.request, self._statistics = request, statistics
        self._loop = asyncio.get_running_loop()
        self.reply: asyncio.Future[Completion] = self._loop.create_future()
        self._told = False

    @property
    def open(self) -> bool:
        """Whether somebody waits, and was told nothing yet."""
        return not (self._told or self.reply.done())

    def tell(self, reply: Completion | Exception) -> None:
        """The reply, or why there is none."""
        self._told = True
        if isinstance(reply, Completion):
            self._statistics.prompt_tokens += reply.prompt_tokens or 0
        elif not isinstance(reply, PromptTooLong):  # that is asked again, with less text
            self._statistics.failures += 1
        self._loop.call_soon_threadsafe(self._settle, reply)

    def _settle(self, reply: Completion | Exception) -> None:
        if self.reply.done():  # whoever asked is gone
            return
        if isinstance(reply, Completion):
            self.reply.set_result(reply)
        else:
            self.reply.set_exception(reply)
            self.reply.exception()  # where nobody waits for it any more, nobody misses it


class Generator(ABC):
    """A loaded model; one thread at a time calls it.

    Args:
        model: Hub id or folder.
        revision: Commit sha, branch or tag on the Hub.
        dtype: ``"auto"`` or a type of torch.
        device: Of torch; None for the usual one.
        options: Further keywords of what loads the model.
        statistics: Where replies and tokens are counted.
    """

    BATCH: ClassVar[int]
    """Most requests in a batch, where none is configured."""

    tokenizer: Any
    room: int | None
    """Tokens of a prompt and its reply together; None where the model names no limit."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        dtype: str,
        device: str | None,
        options: Mapping[str, Any],
        statistics: Statistics,
    ) -> None:
        self._model, self._revision, self._dtype, self._device = model, revision, dtype, device
        self._options, self.statistics = options, statistics

    @abstractmethod
    def load(self) -> None:
        """Load the model, once."""

    @abstractmethod
    def batch_of(self, waiting: Sequence[Asked], most: int) -> Sequence[Asked]:
        """Which of those that wait to generate together."""

    def generate(self, asked: Sequence[Asked]) -> None:
        """Tell each its reply, or that its prompt is too long."""
        fitting = []
        for one in asked:
            if (error := self._too_long(one.request)) is not None:
                one.tell(error)
            else:
                fitting.append(one)
        if fitting:
            self._generate(fitting)

    @abstractmethod
    def _generate(self, asked: Sequence[Asked]) -> None:
        """Tell each its reply; the prompts fit."""

    def close(self) -> None:
        """Let go of what would outlive the process, or hold it up."""
        return

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, by the chat template of the model where it has one, with thinking switched off."""
        given = {} if self.tokenizer.chat_template else {"chat_template": PLAIN}
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            **given,
        )
        return text

    def tokens_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of the prompt; a template writes the special ones itself."""
        special = not self.tokenizer.chat_template
        found: list[int] = self.tokenizer(self.rendered(messages), add_special_tokens=special)["input_ids"]
        return found

    def _too_long(self, request: ChatRequest) -> PromptTooLong | None:
        """Why a prompt does not fit; its tokens are counted only where its bytes do not settle it."""
        if self.room is None or request.size() + TEMPLATE_TOKENS + request.max_tokens <= self.room:
            return None
        length, most = len(self.tokens_of(request.messages)), self.room - request.max_tokens
        if length <= most:
            return None
        said = f"{length} prompt and {request.max_tokens} reply tokens; the model has room for {self.room}"
        return PromptTooLong(said, max(0, most) / length)


def imported(name: str, extra: str, purpose: str) -> Any:
    """A package that an extra brings; a MissingDependencyError that names the extra where it is not there."""
    try:
        return __import__(name)
    except ImportError as error:
        raise MissingDependencyError.of(error.name or name, extra, purpose) from error


class Transformers(Generator):
    """A causal LLM of the transformers library, greedily in batches of like prompts."""

    BATCH = 16

    def load(self) -> None:
        """The tokenizer and the model, on a GPU where there is one."""
        torch, transformers = (imported(name, "local", "A local model") for name in ("torch", "transformers"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self._model, revision=self._revision, padding_side="left"
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        options = {
            "revision": self._revision,
            "torch_dtype": self._dtype if self._dtype == "auto" else getattr(torch, self._dtype),
            **self._options,
        }
        model = transformers.AutoModelForCausalLM.from_pretrained(self._model, **options)
        if "device_map" not in options:
            model = model.to(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer, self.model = tokenizer, model.eval()
        self.room = getattr(model.config, "max_position_embeddings", None)
        self._torch, self._criteria = torch, transformers.StoppingCriteriaList

    def batch_of(self, waiting: Sequence[Asked], most: int) -> Sequence[Asked]:
        """Those of like length: the longest of a batch sets its cost."""
        return sorted(waiting, key=lambda asked: asked.request.characters())[:most]

    def _generate(self, asked: Sequence[Asked]) -> None:
        torch, tokenizer = self._torch, self.tokenizer
        prompts, special = [self.rendered(one.request.messages) for one in asked], not tokenizer.chat_template
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special)
        encoded.pop("token_type_ids", None)
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        watch = _Watch(self, asked, encoded["input_ids"].shape[1], lengths)
        try:
            with torch.inference_mode():
                self.model.generate(
                    **encoded.to(self.model.device),
                    max_new_tokens=max(one.request.max_tokens for one in asked),
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=tokenizer.pad_token_id,
                    stopping_criteria=self._criteria([watch]),
                )
        except torch.OutOfMemoryError as error:
            left = [one for one in asked if one.open]
            if len(asked) == 1:
                raise AnnotatorError(
                    f"The memory does not suffice for a single prompt of {lengths[0]:,} tokens with "
                    f"{self._model}. Take a smaller model or dtype, or a device with more memory."
                ) from error
            torch.cuda.empty_cache()
            for half in (left[: len(left) // 2 or 1], left[len(left) // 2 or 1 :]):
                if half:
                    self._generate(half)

    @property
    def stops(self) -> set[int]:
        """What ends a reply: one, several or none of the model's own; a chat model may end on another one."""
        own = self.model.generation_config.eos_token_id
        return {
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
            *(own if isinstance(own, list) else [own]),
        }


class _Watch:
    """Sees each token of a batch as it comes: tells replies that are whole, and ends those that nobody waits for."""

    def __init__(self, generator: Transformers, asked: Sequence[Asked], start: int, lengths: Sequence[int]) -> None:
        self._generator, self._asked, self._start, self._lengths = generator, asked, start, lengths
        self._stops = generator.stops
        self._left = set(range(len(asked)))

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        """Which of the batch are done, as transformers asks after each token."""
        last, length = ids[:, -1].tolist(), ids.shape[1] - self._start
        self._generator.statistics.completion_tokens += len(self._left)
        for at in list(self._left):
            if last[at] in self._stops:
                self._tell(at, ids[at, self._start : -1].tolist(), "stop")
            elif length >= self._asked[at].request.max_tokens:
                self._tell(at, ids[at, self._start :].tolist(), "length")
            elif not self._asked[at].open:
                self._left.remove(at)
        done = [at not in self._left for at in range(len(last))]
        return self._generator._torch.tensor(done, device=ids.device)

    def _tell(self, at: int, ids: Sequence[int], reason: str) -> None:
        self._left.remove(at)
        self._generator.statistics.replies += 1
        text = self._generator.tokenizer.decode(ids, skip_special_tokens=True)
        self._asked[at].tell(
            Completion(
                text=encodable(text),
                finish_reason=reason,
                prompt_tokens=self._lengths[at],
                completion_tokens=len(ids) + (reason == "stop"),
            )
        )


class VLLM(Generator):
    """A model in vLLM's own engine, by ``LLM.chat``: many prompts at once, which it puts together as they fit."""

    BATCH = 1024
    _llm: Any = None

    def load(self) -> None:
        """The engine, with the GPU memory and the parallelism that its options say."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # a summary stands on standard output
        vllm = imported("vllm", "vllm", 'Local(engine="vllm")')
        options = {"model": self._model, "revision": self._revision, "dtype": self._dtype, **self._options}
        # The engine's processes inherit this: Ctrl-C is for the one that asks, which ends them.
        resource_tracker.ensure_running()  # else it is started with them, and takes the block away
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._llm = vllm.LLM(**options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Before the exit of multiprocessing, which would wait for the engine's process for ever.
        atexit.register(self.close)
        self._sampling, self._structured = vllm.SamplingParams, vllm.sampling_params.StructuredOutputsParams
        self.tokenizer = self._llm.get_tokenizer()
        self.room = self._llm.llm_engine.model_config.max_model_len

    def close(self) -> None:
        """End the processes of the engine, and give the GPU back."""
        atexit.unregister(self.close)
        llm, self._llm = self._llm, None
        core: Any = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
        if hasattr(core, "shutdown"):
            logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns that its processes are ended
            core.shutdown()

    def batch_of(self, waiting: Sequence[Asked], most: int) -> Sequence[Asked]:
        """All of them: the engine keeps as many under way as it has room for."""
        return waiting[:most]

    def _generate(self, asked: Sequence[Asked]) -> None:
        before = self.statistics.replies
        try:
            outputs = self._llm.chat(
                [[dict(message) for message in one.request.messages] for one in asked],
                [self._parameters(one.request) for one in asked],
                use_tqdm=partial(_bar, asked, self.statistics),
                chat_template=None if self.tokenizer.chat_template else PLAIN,
                chat_template_kwargs={"enable_thinking": False},
            )
        except _Unwanted:
            return
        except ValueError as error:  # one prompt, or one grammar, that it refuses
            if len(asked) == 1:
                asked[0].tell(RequestRejected(f"vLLM refused the request: {excerpt(str(error))}"))
                return
            for one in asked:
                self._generate([one])
            return
        self.statistics.replies = before + len(outputs)
        for one, output in zip(asked, outputs, strict=True):
            given = output.outputs[0]
            self.statistics.completion_tokens += len(given.token_ids)
            one.tell(
                Completion(
                    text=encodable(given.text),
                    finish_reason=given.finish_reason,
                    prompt_tokens=len(output.prompt_token_ids or ()),
                    completion_tokens=len(given.token_ids),
                )
            )

    def _parameters(self, request: ChatRequest) -> Any:
        held = self._structured(json=dict(request.schema)) if request.schema else None
        return self._sampling(max_tokens=request.max_tokens, temperature=0.0, seed=0, structured_outputs=held)


class _Unwanted(Exception):
    """Nobody waits for the batch any more."""


def _bar(asked: Sequence[Asked], statistics: Statistics, *given: Any, **options: Any) -> Any:
    """What vLLM takes for its progress bar: it counts, and ends the batch where nobody waits for it."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> Any:
            if given:  # a bar of its own, around what is rendered before
                return super().update(n)
            if not any(one.open for one in asked):
                raise _Unwanted
            statistics.replies += int(n or 0)
            return super().update(n)

    return Silent(*given, **{**options, "file": io.StringIO(), "disable": False})


GENERATORS: Mapping[str, type[Generator]] = {"transformers": Transformers, "vllm": VLLM}
"""By the name of the engine."""
