"""The annotator in this process: any transformers causal LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from arhn_datasets.annotators.client.contract import ChatRequest, Completion
from arhn_datasets.annotators.llm import MODEL_OPTIONS, LLMAnnotator, model_options
from arhn_datasets.errors import ConfigurationError, MissingDependencyError, PromptTooLong
from arhn_datasets.rows import background
from arhn_datasets.rows.options import Option, check_integer
from arhn_datasets.rows.records import digest

TAIL_BYTES = 1 << 20


class _Asked(NamedTuple):
    prompt: str
    max_tokens: int
    reply: asyncio.Future[Completion]


@dataclass(frozen=True, eq=False)
class Local(LLMAnnotator):
    """A causal LLM of the transformers library, in this process.

    Requests that arrive while a batch is generated wait for the next one, so calling row by row fills batches as well.
    The chat template of the model is used where it has one, with thinking switched off.

    Args:
        model: Hub id or folder.
        revision: Commit sha, branch or tag on the Hub.
        batch_size: Most prompts in one batch; halved where memory does not suffice.
        device: ``"cuda"``, ``"cpu"``, ...; by default a GPU where there is one.
        dtype: ``"auto"`` (as the model was saved), ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        ConfigurationError: a value is out of range.
        MissingDependencyError: torch or transformers is not installed.
    """

    NAME: ClassVar[str] = "local"
    SUMMARY: ClassVar[str] = "a transformers model in this process"
    OPTIONS: ClassVar[Mapping[str, Option]] = MODEL_OPTIONS
    on_gpu: ClassVar[bool] = True

    model: str
    _: KW_ONLY
    revision: str | None = None
    batch_size: int = 16
    device: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("batch_size", self.batch_size, least=1)

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Local:
        """The model that ``--model`` names.

        Raises:
            ConfigurationError: it is missing.
        """
        if not given["model"]:
            raise ConfigurationError("--annotator local needs --model: a Hub id such as Qwen/Qwen3-4B, or a folder.")
        return cls(given["model"], **model_options(given))

    async def complete(self, request: ChatRequest) -> Completion:
        """The reply, generated in a batch with whatever else is waiting; a schema is not enforced here."""
        return await self._engine().ask(request.messages, request.max_tokens)

    async def model_identity(self) -> dict[str, Any]:
        """The model, and the commit or the files that it is made of."""
        key = ("local identity", self.model, self.revision)
        found: dict[str, Any] = background.resource(key, lambda: _identify(self.model, self.revision))
        return {**found, "dtype": self.dtype}

    def identity(self, stage: str) -> dict[str, Any]:
        """Model, revision, prompt and parameters; batch size and device are no part of it."""
        return {"annotator": "llm", **background.run(self.model_identity()), **self._stage_identity(stage)}

    def description(self) -> dict[str, Any]:
        """Model, revision and prompts, for the card."""
        from transformers import __version__

        return {
            "annotator": "LLM in process",
            "baseline": False,
            **background.run(self.model_identity()),
            "server": "transformers",
            "server_version": __version__,
            **self._prompt_description(),
        }

    def _engine(self) -> _Engine:
        key = ("local", self.model, self.revision, self.batch_size, self.device, self.dtype)
        return background.resource(key, lambda: _Engine(self))


class _Engine:
    """A loaded model, and the prompts that wait for it; lives on the background loop."""

    def __init__(self, options: Local) -> None:
        self._options = options
        self._waiting: list[_Asked] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arhn-local")
        self._loading: asyncio.Future[None] | None = None
        self._loaded: Any = None

    async def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Completion:
        loop = asyncio.get_running_loop()
        if self._loading is None:
            self._loading = loop.run_in_executor(self._thread, self._load)
        await asyncio.shield(self._loading)
        asked = _Asked(self._render(messages), max_tokens, loop.create_future())
        self._waiting.append(asked)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await asked.reply

    async def _work(self) -> None:
        await asyncio.sleep(0)  # whoever arrives in the same turn of the loop comes along
        while self._waiting:
            # Equal limits and like lengths together: the longest of a batch sets its cost.
            self._waiting.sort(key=lambda asked: (asked.max_tokens, len(asked.prompt)))
            limit = self._waiting[0].max_tokens
            batch = [asked for asked in self._waiting[: self._options.batch_size] if asked.max_tokens == limit]
            del self._waiting[: len(batch)]
            try:
                replies = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._generate, [asked.prompt for asked in batch], limit
                )
            except Exception as error:
                for asked in batch:
                    asked.reply.set_exception(error)
                continue
            for asked, reply in zip(batch, replies, strict=True):
                if isinstance(reply, Completion):
                    asked.reply.set_result(reply)
                else:
                    asked.reply.set_exception(reply)

    def _load(self) -> None:
        torch, transformers = _libraries()
        options = self._options
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            options.model, revision=options.revision, padding_side="left"
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, revision=options.revision, torch_dtype=dtype
        )
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded = (torch, tokenizer, model.to(device).eval())

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        _, tokenizer, _ = self._loaded
        if not tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    def _generate(self, prompts: Sequence[str], max_tokens: int) -> list[Completion | PromptTooLong]:
        _, tokenizer, model = self._loaded
        room = getattr(model.config, "max_position_embeddings", None)
        encoded = tokenizer(list(prompts), add_special_tokens=not tokenizer.chat_template)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        fits = [room is None or length + max_tokens <= room for length in lengths]
        shown = [prompt for prompt, ok in zip(prompts, fits, strict=True) if ok]
        replies = iter(self._generate_fitting(shown, max_tokens) if shown else ())
        return [
            next(replies)
            if ok
            else PromptTooLong(
                f"{length} prompt and {max_tokens} reply tokens; the model has room for {room}",
                (room - max_tokens) / length if room else None,
            )
            for ok, length in zip(fits, lengths, strict=True)
        ]

    def _generate_fitting(self, prompts: Sequence[str], max_tokens: int) -> list[Completion]:
        torch, tokenizer, model = self._loaded
        encoded = tokenizer(
            list(prompts), return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template
        )
        encoded.pop("token_type_ids", None)
        try:
            with torch.inference_mode():
                output = model.generate(
                    **encoded.to(model.device),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=tokenizer.pad_token_id,
                )
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            torch.cuda.empty_cache()
            halves = prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]
            return [reply for half in halves for reply in self._generate_fitting(half, max_tokens)]
        replies = []
        stops = (
            model.generation_config.eos_token_id
        )  # one, several or none; a chat model may end on another than its own
        stops = {tokenizer.eos_token_id, tokenizer.pad_token_id, *(stops if isinstance(stops, list) else [stops])}
        for given in output:
            ids = given[encoded["input_ids"].shape[1] :].tolist()
            ended = len(ids) < max_tokens or not stops.isdisjoint(ids)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            replies.append(Completion(text=text, finish_reason="stop" if ended else "length"))
        return replies

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError.of(error.name or "transformers", "local", "A local model") from error
    return torch, transformers


def _identify(model: str, revision: str | None) -> dict[str, Any]:
    """Model and revision: a commit on the Hub, a hash of the files in a folder."""
    folder = Path(model)
    if folder.is_dir():
        return {"model": folder.name, "revision": "files-" + hash_of_folder(folder)}
    _, transformers = _libraries()
    config = transformers.AutoConfig.from_pretrained(model, revision=revision)
    return {"model": model, "revision": getattr(config, "_commit_hash", None) or revision}


def hash_of_folder(folder: Path) -> str:
    """A hash of names, sizes and the last mebibyte of every file: a retrained model differs there."""
    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            parts.append([path.relative_to(folder).as_posix(), size, digest(file.read().hex())])
    return digest(parts)[:16]
