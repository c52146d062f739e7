"""What the pool asks of one server, and how that goes over HTTP: aiohttp on the background loop."""

from __future__ import annotations

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arhn_datasets.annotators.client import contract, refusals
from arhn_datasets.annotators.client.completions import is_cut
from arhn_datasets.annotators.client.contract import ChatRequest, Completion, ConnectionOptions, ServerInfo, shown_url
from arhn_datasets.annotators.client.cutting import Cutting
from arhn_datasets.errors import (
    AccessDenied,
    ArhnError,
    ConfigurationError,
    EmptyReply,
    EndpointError,
    EndpointUnavailable,
    MissingDependencyError,
    PromptTooLong,
    RequestRejected,
)

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

_GRAMMAR = re.compile(r"grammar|response_format|guided|json_schema|structured", re.IGNORECASE)
_NO_TEMPLATE = re.compile(r"template.*not found|not found.*template", re.IGNORECASE | re.DOTALL)  # TGI: no .jinja
HUB_SECONDS = 5.0  # for its word on whether a tokenizer is there
_USER_INFO = re.compile(r"//[^/\s]*@")


class ChatTransport(ABC):
    """One server as the pool sees it; each call is one attempt. A subclass sends a request as it stands."""

    name: str
    refused: frozenset[str] = frozenset()
    """Options of a request that this server takes not; without ``temperature`` its replies are sampled."""
    patience: Callable[[], float] = staticmethod(lambda: 0.0)
    """The seconds that replies were seen to need at most; a request is given as many, beyond its time limit."""
    _grammar = True

    @abstractmethod
    async def info(self) -> ServerInfo:
        """What the server says of itself."""

    @abstractmethod
    async def probe(self) -> None:
        """Raise where the server does not answer."""

    async def queue(self) -> tuple[int, int] | None:
        """The requests that run at the server and those that wait there, None where it does not say."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""

    async def chat(self, info: ServerInfo, request: ChatRequest) -> Completion:
        """The reply to one request; constrained output is left out where the server refuses it.

        Raises:
            EndpointError: this attempt failed.
        """
        if not self._grammar:
            request = replace(request, schema=None)
        try:
            completion = await self._ask(info, request)
        except RequestRejected as error:
            if request.schema is None or not _GRAMMAR.search(str(error)):
                raise
            if self._grammar:  # those under way at the same time are refused, too
                logger.warning("%s takes no constrained output (%s); asking without", self.name, error)
            self._grammar = False
            completion = await self._ask(info, replace(request, schema=None))
        if not completion.text.strip() and not is_cut(completion.finish_reason):
            raise EmptyReply("the server answered 200 with an empty text")
        return completion

    @abstractmethod
    async def _ask(self, info: ServerInfo, request: ChatRequest) -> Completion:
        """The reply to one request as it stands."""


class _Patience:
    """Ends what is inside by a TimeoutError after ``seconds``, or later where ``grown`` says so by then."""

    def __init__(self, seconds: float, grown: Callable[[], float] | None) -> None:
        self.seconds = seconds
        self._least, self._grown, self._over = seconds, grown, False

    def __enter__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._began = self._loop.time()
        self._timer = self._loop.call_at(self._began + self.seconds, self._look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._over and kind is not None and issubclass(kind, asyncio.CancelledError):
            getattr(self._task, "uncancel", int)()  # from Python 3.11 on
            raise asyncio.TimeoutError

    def _look(self) -> None:
        self.seconds = max(self._least, self._grown() if self._grown else 0.0)
        if self._began + self.seconds > self._loop.time():
            self._timer = self._loop.call_at(self._began + self.seconds, self._look)
        elif self._task is not None:
            self._over = True
            self._task.cancel()


class HttpTransport(ChatTransport):
    """The chat API of one server; each call is one attempt.

    ``model`` is the one to ask for where the server has several or names none.
    """

    def __init__(self, url: str, options: ConnectionOptions, model: str | None = None) -> None:
        self.url = url
        self.name = shown_url(url)
        self._options = options
        self._model = model
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._cutting = Cutting()
        self._loads_later = False  # a model, and then says its context
        self._tokenizer: Any = None
        self._no_tokenizer: ConfigurationError | None = None
        self._loading = asyncio.Lock()

    async def info(self) -> ServerInfo:
        """What the server says of itself.

        Raises:
            EndpointUnavailable: nothing answers there.
            AccessDenied: it does not tell its models to this key.
            ConfigurationError: what answers is no LLM server.
        """
        found = None if self._options.api == contract.OPENAI else await self._router()
        if found is not None:
            return found
        status, reply, headers = await self._request("GET", "/v1/models")
        names = contract.parse_models(reply) if status == 200 else None
        api = self._options.api or contract.OPENAI
        if names is not None:
            info = ServerInfo(api=api, model=contract.chosen_model(names, self._model, self.url))
            return replace(info, slots=await self._read_context(info, loaded=False))
        error = self._error_of(status, reply, headers)
        if status in refusals.PASSING_STATUSES:
            raise error
        if self._model:  # a gateway may let nothing through but chats, whose own statuses tell
            return ServerInfo(api=api, model=self._model)
        if not isinstance(error, RequestRejected):
            raise error
        advice = error.advice or ""
        if status // 100 == 3:
            raise ConfigurationError(f"{self.name} answered {error}. {advice}".rstrip())
        if status >= 400 and status not in (404, 405):
            raise AccessDenied(
                f"{self.name} answered {error} (to /v1/models). {advice or refusals.WRONG_KEY} Where it only "
                "hides its models, name the one to ask: --model."
            )
        raise ConfigurationError(
            f"{self.name} is no LLM server that this package knows: /info and /v1/models name no model (the latter "
            f"answered {error}). Expected text-generation-inference or an OpenAI-compatible chat server; check the "
            "URL and the API key, or name the API and the model (--api, --model)."
        )

    async def _router(self) -> ServerInfo | None:
        """What TGI says of itself, None where it is none."""
        status, reply, headers = await self._request("GET", "/info")
        if status in refusals.PASSING_STATUSES:
            # A gateway's trouble: without /info, TGI would be taken for a server of the other kind.
            raise self._error_of(status, reply, headers)
        found = contract.parse_info(reply) if status == 200 else None
        if found is not None and self._options.tokenizer:
            await self._render_here(found)
        return found

    async def probe(self) -> None:
        """Ask whether the server is there; raises where it is not."""
        status, reply, headers = await self._request("GET", "/health")
        if status >= 500 or status == 429:
            raise self._error_of(status, reply, headers)

    async def queue(self) -> tuple[int, int] | None:
        """The requests that run at the server and those that wait there, as its ``/metrics`` say."""
        status, reply, _ = await self._request("GET", "/metrics")
        return contract.parse_queue(reply) if status == 200 else None

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, info: ServerInfo, request: ChatRequest) -> Completion:
        await self._check_room(info, request)
        if self._tokenizer is not None:
            return await self._generate(info, request)
        body = contract.chat_body(info, request, refused=self.refused)
        status, reply, headers = await self._request("POST", "/v1/chat/completions", body)
        if status == 200:
            completion = contract.parse_completion(reply, self._options.api_key)
            if info.api == contract.OPENAI:
                if self._loads_later:
                    await self._read_context(info, loaded=True)
                self._cutting.check(request, completion)
            return replace(completion, sampled=True) if "temperature" in self.refused else completion
        option = refusals.refused_option(status, reply, body) if info.api == contract.OPENAI else None
        error = self._error_of(status, reply, headers)
        if option is not None:
            if option not in self.refused:  # those under way at the same time are refused, too
                instead = refusals.OPTIONAL[option]
                logger.warning("%s takes no %s (%s); sending %s", self.name, option, error, instead or "none")
                self.refused |= {option}
            return await self._ask(info, request)
        said = str(error).lower()
        if (
            info.api == contract.TGI
            and isinstance(error, RequestRejected)
            and "template" in said
            and "not found" in said
        ):
            # TGI reads no chat_template.jinja.
            await self._render_here(info)
            return await self._generate(info, request)
        raise error

    async def _read_context(self, info: ServerInfo, *, loaded: bool) -> int | None:
        """Ask Ollama, and llama-server, for the context of the model; others have no such routes, or refuse by 400.

        Returns how many requests the server works on at once, where it says so. Ollama loads a model at its first
        request, and tells of those that are loaded.
        """
        async with self._loading:
            if loaded and not self._loads_later:  # somebody has asked meanwhile
                return None
            for path in ("/api/ps", "/props"):
                try:
                    status, reply, _ = await self._request("GET", path)
                except ArhnError:
                    continue
                if status == 200:
                    self._cutting.context = contract.parse_context(reply, info.model)
                    self._loads_later = not loaded and self._cutting.context is None and b'"models"' in reply
                    return contract.parse_slots(reply)
            self._loads_later = False
            return None

    async def _generate(self, info: ServerInfo, request: ChatRequest) -> Completion:
        prompt = self._tokenizer.apply_chat_template(
            [dict(message) for message in request.messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        status, reply, headers = await self._request("POST", "/generate", contract.generate_body(prompt, request))
        if status != 200:
            raise self._error_of(status, reply, headers)
        counted = headers.get("x-prompt-tokens", "")
        completion = contract.parse_generated(reply, self._options.api_key)
        return replace(completion, prompt_tokens=int(counted) if counted.isdecimal() else None)

    async def _render_here(self, info: ServerInfo) -> None:
        """Load the tokenizer once, for all who wait for it; what hinders it is told to all of them."""
        async with self._loading:
            if self._no_tokenizer:
                raise self._no_tokenizer
            if self._tokenizer is None:
                try:
                    self._tokenizer = await self._load_tokenizer(info)
                except ConfigurationError as error:
                    self._no_tokenizer = error
                    raise

    async def _load_tokenizer(self, info: ServerInfo) -> Any:
        logger.warning("%s has no chat template; rendering it here and asking /generate", self.name)
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingDependencyError.of("transformers", "local", "A server without a chat template") from error
        own = self._options.tokenizer
        name, revision = (own, None) if own else (info.model, info.revision)

        def load() -> Any:
            try:
                return AutoTokenizer.from_pretrained(name, revision=revision, local_files_only=True)
            except Exception:  # it is not on this machine, whatever the library calls that
                from huggingface_hub import HfApi

                HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)  # loading would ask again and again
                return AutoTokenizer.from_pretrained(name, revision=revision)

        try:
            tokenizer = await asyncio.get_running_loop().run_in_executor(None, load)
        except Exception as error:
            raise ConfigurationError(
                f"{self.name} has no chat template, and the tokenizer {name!r} cannot be loaded to render it "
                f"({refusals.excerpt(str(error)).rstrip('.')}). Name the tokenizer of its model, an id of the Hub or a "
                "folder: --tokenizer or tokenizer=; or start the server with a model that has a chat template."
            ) from error
        if not tokenizer.chat_template:
            raise ConfigurationError(
                f"The tokenizer {name!r} has no chat template. Name one that has: --tokenizer or tokenizer=; one that "
                "was trained to chat is needed."
            )
        return tokenizer

    async def _check_room(self, info: ServerInfo, request: ChatRequest) -> None:
        """Refuse here what the server would refuse; tokens are counted only where bytes do not settle it."""
        self._cutting.foresee(request)
        room = contract.room(info, request.max_tokens)
        if room is None or request.size() <= room:
            return
        text = "\n".join(message["content"] for message in request.messages)
        status, reply, _ = await self._request("POST", "/tokenize", {"inputs": text, "parameters": {}})
        count = contract.parse_tokens(reply) if status == 200 else None
        if count is None:
            count = request.size() // 4  # the usual length of a token; where it is wrong the server says so
        if count > room:
            raise PromptTooLong(f"{count} tokens in the prompt, the server has room for {room}", room / count)

    def _error_of(self, status: int, reply: bytes, headers: Mapping[str, str]) -> EndpointError:
        reply = refusals.without(self._options.api_key, reply)
        place = refusals.place_of(f"{self.url}/", headers.get("Location"))
        return refusals.error_of(status, reply, headers.get("Retry-After"), place)

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._options.api_key}"} if self._options.api_key else {}
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None)  # ours may grow while a request is under way
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
            self._proxy = contract.proxy_of(self.url)
        patience = _Patience(self._options.timeout, self.patience if method == "POST" else None)
        try:
            # Redirects are refused: they could carry the key to another host.
            with patience:
                async with self._session.request(
                    method, self.url + path, json=body, headers=headers, allow_redirects=False, proxy=self._proxy
                ) as reply:
                    return reply.status, await reply.read(), reply.headers
        except asyncio.TimeoutError as error:
            waited = patience.seconds
            raise EndpointUnavailable(
                f"no reply from {self.name} within {waited:.4g} seconds", own=True, waited=waited
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            said = refusals.excerpt(_USER_INFO.sub("//", str(error)))  # it may name the proxy
            away = isinstance(error, aiohttp.ClientConnectorError)
            raise EndpointUnavailable(f"no connection to {self.name}: {said}", own=not away) from error
        except ValueError as error:
            said = refusals.excerpt(str(error)).rstrip(".")
            raise ConfigurationError(
                f"no request to {self.name} can be sent: {said}. Check that the API key is one line of plain "
                "characters, that the URL holds no password beside it, and the proxy."
            ) from error
