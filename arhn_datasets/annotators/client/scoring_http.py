"""What the pool asks of one server of scores: which kind it is, and each attempt, what is too long counted first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from arhn_datasets.annotators.client import contract, refusals, scoring
from arhn_datasets.annotators.client.contract import ChatRequest, ConnectionOptions, ServerInfo
from arhn_datasets.annotators.client.http import HttpTransport
from arhn_datasets.annotators.client.scoring import Measured, ScoringInfo, TextsRequest
from arhn_datasets.errors import (
    AccessDenied,
    ConfigurationError,
    EndpointError,
    EndpointFailure,
    EndpointUnavailable,
    PromptTooLong,
    RequestRejected,
)

EXPECTED = (
    f"Expected {scoring.TEI} with a reranker or an embedding model, or a server with /v1/rerank or /v1/embeddings"
)
SPECIALS = 8  # more tokens than any model adds to a text or a pair
_TRIED = ("a small red stone", "how to make tea")
_DENIED = (401, 403)


class ScoringTransport(HttpTransport):
    """The scores, or the vectors, of one server; each call is one attempt.

    ``kind`` is what is wanted where a server can do both, or does not tell. ``texts_at_once`` is the largest request
    so far: some servers limit the texts in flight and not the requests.
    """

    def __init__(self, url: str, options: ConnectionOptions, model: str | None, kind: str | None) -> None:
        super().__init__(url, options, model)
        self.texts_at_once = 8
        self._kind = kind
        self._tried: ScoringInfo | None = None
        self._was_away = False

    async def info(self) -> ScoringInfo:
        """What the server says of itself, and where it says nothing, what it does with two short texts.

        Raises:
            EndpointUnavailable: nothing answers there.
            AccessDenied: it answers nothing to this key.
            ConfigurationError: what answers gives no such scores; the message says what was found.
        """
        found: ScoringInfo | str | None = None
        if self._options.api != contract.OPENAI:
            status, reply, headers = await self._request("GET", "/info")
            if status in refusals.PASSING_STATUSES:
                raise self._error_of(status, reply, headers)
            if status == 200 and isinstance(value := refusals.json_of(reply), dict):
                found = scoring.declared(value, self.texts_at_once)
        if isinstance(found, str):
            raise ConfigurationError(f"{self.name} is {found}, which gives no scores. {EXPECTED}.")
        if found is None:
            return await self._by_trying()
        if self._kind not in (None, found.kind):
            raise ConfigurationError(
                f"{self.name} is {scoring.TEI} with the {found.kind} {found.model}, and kind is {self._kind!r}. Leave "
                "kind out, or name a server of such a model."
            )
        if found.kind == scoring.BI_ENCODER:
            found = replace(found, prompts=await self._prompts_of(found))
        return found

    async def _prompts_of(self, info: ScoringInfo) -> dict[str, str]:
        """The names of the model's own prompts for each side: the server tells them by taking them."""
        if self._tried is not None and (self._tried.model, self._tried.revision) == (info.model, info.revision):
            return dict(self._tried.prompts)
        known = {}
        for side, names in scoring.PROMPT_NAMES.items():
            for name in names:
                answered = await self._tries(info, TextsRequest(texts=_TRIED, prompt=name))
                if isinstance(answered, ScoringInfo):
                    known[side] = name
                    break
                if "prompt" not in answered:  # whatever it is, it does not say that there is none
                    raise EndpointFailure(f"{info.route} {answered}")
        self._tried = replace(info, prompts=known)
        return known

    async def _by_trying(self) -> ScoringInfo:
        """The kind of a server that does not tell it: each route is asked for two texts."""
        names, most_tokens, said = await self._listed()
        if names is None and not self._model:
            raise ConfigurationError(
                f"{self.name} names no model ({said}). {EXPECTED}; check the URL, or name a model."
            )
        model = contract.chosen_model(names or [], self._model, self.url)
        found, told, before = {}, [said], self._tried
        for kind, routes in (scoring.ROUTES if before is None else {before.kind: [before.route]}).items():
            for route in routes if self._kind in (None, kind) else ():
                info = ScoringInfo(
                    api=scoring.COMPATIBLE, model=model, max_input_tokens=most_tokens, kind=kind, route=route
                )
                query = _TRIED[0] if kind == scoring.CROSS_ENCODER else None
                answered = await self._tries(info, TextsRequest(texts=_TRIED, query=query))
                if isinstance(answered, ScoringInfo):
                    found[kind] = answered
                    break
                told.append(f"{route} {answered}")
        if len(found) > 1:
            both = " and ".join(one.route for one in found.values())
            raise ConfigurationError(
                f"{self.name} answers both {both}, and does not tell what {model} is. Say it: "
                f"kind={scoring.CROSS_ENCODER!r} for the first, kind={scoring.BI_ENCODER!r} for the second."
            )
        if not found:
            fatal = ConfigurationError if before is None else EndpointFailure
            raise fatal(f"{self.name} gives no scores ({'; '.join(told)}). {EXPECTED}.")
        (info,) = found.values()
        if info.named != model and info.named in (names or ()):
            raise ConfigurationError(
                f"{self.name} was asked for {model}, and {info.named} has answered, another model."
            )
        if before is not None and before.width != info.width:
            raise ConfigurationError(
                f"{self.name} gives vectors of {info.width} numbers now, and the run began with {before.width}. "
                "One run takes one model: start the run again."
            )
        self._tried = info
        return info

    async def _listed(self) -> tuple[list[str] | None, int | None, str]:
        """The models that the server lists, the length of the only one, and what it said."""
        said = ""
        for path in ("/v1/models", "/models"):
            status, reply, headers = await self._request("GET", path)
            if status in refusals.PASSING_STATUSES:
                raise self._error_of(status, reply, headers)
            if not self._model:  # else a gateway may only hide its models
                self._refuse_denied(status, reply, headers, path)
            names = contract.parse_models(reply) if status == 200 else None
            if names is not None:
                listed = refusals.json_of(reply)["data"]
                most = listed[0].get("max_model_len") if len(names) == len(listed) == 1 else None
                return names, most if type(most) is int and most > 0 else None, f"{path} lists {', '.join(names[:9])}"
            said = said or f"{path} answered {self._error_of(status, reply, headers) if status != 200 else 200}"
        return None, None, said

    async def _tries(self, info: ScoringInfo, request: TextsRequest) -> ScoringInfo | str:
        """The server as its reply to two texts shows it, or in its words why there is none.

        Raises:
            EndpointError: it says nothing of that, and may in a while; a kind that is taken for another one would
                give other scores.
        """
        status, reply, headers = await self._request("POST", info.route, scoring.body_of(info, request))
        self._refuse_denied(status, reply, headers, info.route)
        if status != 200:
            error = self._error_of(status, reply, headers)
            refused = isinstance(error, RequestRejected) and not isinstance(error, PromptTooLong)
            if not refused and status != 501:  # llama-server for another task
                raise error
            return f"answered {error}"
        given = scoring.read(reply, info, request, self._options.api_key)
        width = len(given.values[0]) if info.kind == scoring.BI_ENCODER else None
        if width == 1:  # llama-server with a reranker: its score as a vector
            return "gave vectors of one number"
        # A gateway may name the model behind it: that is then which one it is exactly.
        revision = info.revision if given.named in (None, info.model) else given.named
        return replace(info, named=given.named, revision=revision, width=width)

    def _refuse_denied(self, status: int, reply: bytes, headers: Mapping[str, str], path: str) -> None:
        if status in _DENIED:
            error = self._error_of(status, reply, headers)
            raise AccessDenied(f"{self.name} answered {error} (to {path}). {refusals.WRONG_KEY}")

    async def _ask(self, info: ServerInfo, request: ChatRequest) -> Measured:
        assert isinstance(info, ScoringInfo)
        assert isinstance(request, TextsRequest)
        if self._was_away:
            await self._check_same(info)
        every = frozenset(range(len(request.texts)))
        cut = every if request.cut else await self._too_long(info, request)
        sent = replace(request, cut=bool(cut))
        try:
            status, reply, headers = await self._request("POST", info.route, scoring.body_of(info, sent))
        except EndpointUnavailable:
            self._was_away = True
            raise
        if status != 200:
            raise self._error_of(status, reply, headers)
        measured = scoring.read(reply, info, request, self._options.api_key)
        counted = headers.get("x-compute-tokens", "")
        tokens = int(counted) if counted.isdecimal() else measured.prompt_tokens
        return replace(measured, cut=cut, prompt_tokens=tokens)

    async def _check_same(self, info: ScoringInfo) -> None:
        """Refuse another model that has come up where the connection was lost: its replies do not name it."""
        now = await self.info()
        if (now.model, now.revision, now.kind) != (info.model, info.revision, info.kind):
            raise ConfigurationError(
                f"{self.name} serves {now.model}@{now.revision} now, and the run began with "
                f"{info.model}@{info.revision}. One run takes one model: start the run again."
            )
        self._was_away = False

    async def _too_long(self, info: ScoringInfo, request: TextsRequest) -> frozenset[int]:
        """The texts that the server would cut; tokens are counted only where bytes do not settle it.

        Where this finds none, the request forbids the server to cut, so that a wrong count is no silent cut.
        """
        most = info.max_input_tokens
        if info.api != scoring.TEI or most is None:
            return frozenset()
        beside = [] if request.query is None else [request.query]
        room = most - SPECIALS - sum(map(_bytes, beside))
        long = [at for at, text in enumerate(request.texts) if _bytes(text) > room]
        try:
            counts = await self._counts(info, request, [*beside, *(request.texts[at] for at in long)]) if long else []
        except (EndpointError, ValueError):  # the server will refuse what is too long
            return frozenset()
        before = sum(counts[: len(beside)])
        over = {at: before + count - most for at, count in zip(long, counts[len(beside) :], strict=True)}
        # A pair may have one special token less than its texts alone: of that the server decides.
        settled = max(over.values(), default=0) > len(beside)
        return frozenset(at for at, more in over.items() if more > 0) if settled else frozenset()

    async def _counts(self, info: ScoringInfo, request: TextsRequest, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, special ones included."""
        counts: list[int] = []
        for part in parts_of(texts, info.most_texts):
            body = {"inputs": list(part), **({} if request.prompt is None else {"prompt_name": request.prompt})}
            status, reply, headers = await self._request("POST", "/tokenize", body)
            if status != 200:
                raise self._error_of(status, reply, headers)
            listed = refusals.json_of(reply)
            if not isinstance(listed, list) or len(listed) != len(part) or not all(isinstance(t, list) for t in listed):
                raise ValueError("no list of tokens for each text")
            counts += map(len, listed)
        return counts


def _bytes(text: str) -> int:
    """The bytes of a text: no tokenizer makes more tokens of it."""
    return len(text.encode("utf-8", "replace"))


def parts_of(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """The texts in parts of up to ``most``."""
    return (texts[at : at + most] for at in range(0, len(texts), most))
