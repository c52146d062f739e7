"""The annotator in this process: a causal LLM, by transformers or by vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from arhn_datasets.annotators.client.contract import ChatRequest, Completion
from arhn_datasets.annotators.client.refusals import excerpt
from arhn_datasets.annotators.generation import GENERATORS, Asked, LocalStatistics, imported
from arhn_datasets.annotators.llm import MODEL_OPTIONS, model_options, shared
from arhn_datasets.annotators.packing import PackingAnnotator
from arhn_datasets.errors import AnnotatorError, ArhnError, ConfigurationError, MissingDependencyError
from arhn_datasets.rows import background
from arhn_datasets.rows.options import Option, check_choice, check_integer
from arhn_datasets.rows.records import digest

TAIL_BYTES = 1 << 20
GATHERING_SECONDS = 0.01  # until nobody new asks: a batch takes a hundred times as long
OWN = ("batch_size", "device", "dtype")  # what the option of the command gives to this class, and not to the engine
# How the engine works, and no part of what it gives: a rerun on another machine finds the replies of this one.
OF_THE_MACHINE = frozenset(
    {"cache_dir", "download_dir", "hf_token", "local_files_only", "low_cpu_mem_usage", "token", "trust_remote_code"}
    | {"device_map", "max_memory", "attn_implementation", "cpu_offload_gb", "offload_folder", "swap_space"}
    | {"gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"}
    | {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_prefix_caching"}
    | {"compilation_config", "disable_log_stats", "enable_chunked_prefill", "kv_cache_memory_bytes"}
)


@dataclass(frozen=True, eq=False)
class Local(PackingAnnotator):
    """A causal LLM in this process, by transformers or by vLLM.

    Requests that arrive while a batch is generated wait for the next one, so calling row by row fills batches as well.
    The chat template of the model is used where it has one, with thinking switched off.

    Args:
        model: Hub id or folder.
        revision: Commit sha, branch or tag on the Hub.
        batch_size: Most prompts in one batch, by default 16; halved where memory does not suffice. vLLM gets up to
            1,024 at once, and puts its batches together itself.
        device: ``"cuda"``, ``"cpu"``, ...; by default a GPU where there is one. vLLM finds its own.
        dtype: ``"auto"`` (as the model was saved), ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        engine: ``"transformers"``, or ``"vllm"``, which is many times faster on a GPU.
        engine_options: Further keywords of ``vllm.LLM`` (``max_model_len``, ``gpu_memory_utilization``,
            ``tensor_parallel_size``, ``quantization``, ...), or of ``from_pretrained``.

    Raises:
        ConfigurationError: a value is out of range, or the model cannot be loaded.
        MissingDependencyError: torch, transformers or vllm is not installed.
    """

    NAME: ClassVar[str] = "local"
    SUMMARY: ClassVar[str] = "a model in this process, by transformers or vLLM"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **MODEL_OPTIONS,
        "local_engine": Option(help="what runs a local model; default: transformers", choices=tuple(GENERATORS)),
        "local_option": Option(
            help="batch_size, device, dtype, or a keyword of vllm.LLM (max_model_len, gpu_memory_utilization, "
            "tensor_parallel_size, quantization, ...) or from_pretrained; repeatable",
            metavar="NAME=VALUE",
            repeatable=True,
        ),
        "constrained": Option(help="hold the model to JSON, where the server or vLLM can", switch=True),
    }
    on_gpu: ClassVar[bool] = True

    model: str
    _: KW_ONLY
    revision: str | None = None
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "auto"
    engine: str = "transformers"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("batch_size", self.batch_size, least=1, optional=True)
        check_choice("engine", self.engine, tuple(GENERATORS))
        if own := sorted({"model", "revision", *OWN} & self.engine_options.keys()):
            raise ConfigurationError(
                f"engine_options has {', '.join(own)}; give it as an argument of its own: Local(..., {own[0]}=...)."
            )
        if self.engine == "vllm" and self.device is not None:
            raise ConfigurationError(
                f"device is {self.device!r}, and vLLM runs on what it was built for; leave device out, and choose GPUs "
                "with CUDA_VISIBLE_DEVICES."
            )

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Local:
        """The model that ``--model`` names.

        Raises:
            ConfigurationError: it is missing, or ``--local-option`` is no name with a value.
        """
        if not given["model"]:
            raise ConfigurationError("--annotator local needs --model: a Hub id such as Qwen/Qwen3-4B, or a folder.")
        options = dict(map(_named, given["local_option"] or ()))
        own = {name: options.pop(name) for name in OWN if name in options}
        own |= {"engine": given["local_engine"] or cls.engine, "constrained": bool(given["constrained"])}
        return cls(given["model"], engine_options=options, **own, **model_options(given))

    async def complete(self, request: ChatRequest) -> Completion:
        """The reply, generated with whatever else is waiting; vLLM holds it to a schema, transformers does not."""
        return await self._queue().ask(request)

    async def model_identity(self) -> dict[str, Any]:
        """The model, the commit or the files that it is made of, and what of the engine changes a reply."""
        if self.engine == "vllm" and find_spec("vllm") is None:  # told before any work
            raise MissingDependencyError.of("vllm", "vllm", 'Local(engine="vllm"), or --local-engine vllm,')
        key = ("local identity", self.model, self.revision)
        found: dict[str, Any] = background.resource(key, lambda: _identify(self.model, self.revision))
        named = {} if self.engine == "transformers" else {"engine": self.engine}
        changing = {name: value for name, value in self.engine_options.items() if name not in OF_THE_MACHINE}
        if changing:
            named["engine_options"] = _as_json(changing)
        return {**found, "dtype": self.dtype, **named}

    def identity(self, stage: str) -> dict[str, Any]:
        """Model, revision, prompt and parameters; batch size, device and other matters of the machine are no part."""
        return {"annotator": "llm", **background.run(self.model_identity()), **self._stage_identity(stage)}

    def description(self) -> dict[str, Any]:
        """Model, revision and prompts, for the card."""
        return {
            "annotator": "LLM in process",
            "baseline": False,
            **background.run(self.model_identity()),
            "server": self.engine,
            "server_version": imported(self.engine, self.engine, "A local model").__version__,
            **self._prompt_description(),
        }

    def statistics(self) -> dict[str, Any]:
        """Replies and tokens so far in this process, those of a batch that is not done included."""

        async def read() -> dict[str, Any]:
            return {**asdict(self._queue().statistics), **shared().counts}

        return background.run(read())

    def _most_under_way(self) -> int:
        return max(super()._most_under_way(), 2 * self._queue().most)  # one batch, and the next one

    def _queue(self) -> Queue:
        key = ("local", self.model, self.revision, self.batch_size, self.device, self.dtype, self.engine)
        return background.resource((*key, _as_json(self.engine_options)), lambda: Queue(self))


class Queue:
    """The requests that wait for a model, which is loaded for the first of them; lives on the background loop."""

    def __init__(self, options: Local) -> None:
        kind, self.statistics = GENERATORS[options.engine], LocalStatistics()
        self._model, self.most = options.model, options.batch_size or kind.BATCH
        given = options.model, options.revision, options.dtype, options.device, options.engine_options
        self.generator = kind(*given, self.statistics)
        self._waiting: list[Asked] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arhn-local")
        self._loading: asyncio.Future[None] | None = None

    async def ask(self, request: ChatRequest) -> Completion:
        """The reply, generated together with whatever else waits."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self.statistics.requests += 1
        self.statistics.in_flight += 1
        try:
            await asyncio.shield(self._loading)
            asked = Asked(request, self.statistics)
            self._waiting.append(asked)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.get_running_loop().create_task(self._work())
            return await asked.reply
        finally:
            self.statistics.in_flight -= 1

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            seen = 0
            while seen < len(self._waiting):  # whoever is about to ask comes along
                seen = len(self._waiting)
                await asyncio.sleep(GATHERING_SECONDS)
            waiting = [asked for asked in self._waiting if asked.open]
            batch = self.generator.batch_of(waiting, self.most) if waiting else []
            taken = set(map(id, batch))
            self._waiting = [asked for asked in waiting if id(asked) not in taken]
            if not batch:
                return
            try:
                await loop.run_in_executor(self._thread, self.generator.generate, batch)
            except Exception as error:  # of the library or the driver: no request can succeed
                failed = error if isinstance(error, ArhnError) else _failed(f"{self._model} failed to generate", error)
                for asked in batch:
                    if asked.open:
                        asked.tell(failed)

    def _load(self) -> None:
        self.statistics.loading = True
        try:
            self.generator.load()
        except ArhnError:
            raise
        except Exception as error:  # each library has its own, and its own way to say what is not there
            said = f"The model {self._model!r} cannot be loaded"
            raise ConfigurationError(
                f"{said} ({_said(error)}). An id of the Hub or a folder with a causal LLM was expected, and enough "
                "memory for it; look at --model or model=, and at the options of its engine."
            ) from error
        finally:
            self.statistics.loading = False

    async def close(self) -> None:
        """Load or generate nothing more; what is under way ends by itself, for nobody waits for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.generator.close()


def _failed(what: str, error: Exception) -> AnnotatorError:
    return AnnotatorError(
        f"{what} ({_said(error)}). Replies of before are kept: mend the cause and run the same command again."
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {excerpt(str(error)).rstrip('.')}"


def _named(option: str) -> tuple[str, Any]:
    """The name and the value of ``--local-option``: a number, true, false or null as in JSON, anything else a text."""
    name, found, value = option.partition("=")
    if not (name.isidentifier() and found):
        raise ConfigurationError(f"--local-option got {option!r}; NAME=VALUE was expected, as max_model_len=4096.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _as_json(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=repr)


def _identify(model: str, revision: str | None) -> dict[str, Any]:
    """Model and revision: a commit on the Hub, a hash of the files in a folder."""
    folder = Path(model)
    if folder.is_dir():
        return {"model": folder.name, "revision": "files-" + hash_of_folder(folder)}
    transformers = imported("transformers", "local", "A local model")
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
