"""What the stages of evidence share: whose it is, which task a row has, and what no option and no row may be."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pyarrow as pa

from arhn_datasets import evidence
from arhn_datasets.annotators.client.contract import ConnectionOptions, documented, shown_url
from arhn_datasets.annotators.endpoint import Endpoint, urls_of_environment
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.prompts import SUBSET_TASKS, check_tasks, task_of
from arhn_datasets.errors import ConfigurationError, SchemaError
from arhn_datasets.rows import records
from arhn_datasets.rows.arrow import lengths_in
from arhn_datasets.rows.background import gathered
from arhn_datasets.rows.extensions import modules_in, subclasses_of
from arhn_datasets.rows.options import Option
from arhn_datasets.rows.records import LABELLED, NEGATIVE, POSITIVE, QUERY, QUERY_ID, SUBSET, Row, passages_of, shorten
from arhn_datasets.rows.stage import Transform

if TYPE_CHECKING:
    from huggingface_hub import AsyncInferenceClient

Asked = TypeVar("Asked")
Given = TypeVar("Given")
Stage = TypeVar("Stage", bound="EvidenceStage")
Self = TypeVar("Self", bound="AnnotatedTransform")

THREE_WAYS = """No annotator is configured. There are three ways:
  1. the environment:  export ARHN_ENDPOINT=http://localhost:8080   (ARHN_MODEL, ARHN_API_KEY, ARHN_CACHE if needed)
  2. an endpoint:      ds.map(arhn.{name}.with_options(endpoint="http://localhost:8080"))
  3. an annotator:     ds.map(arhn.{name}.with_options(annotator=arhn.Local("Qwen/Qwen3-4B")))
                       or arhn.Lexical() for the baseline that needs no LLM"""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvidenceStage(Transform):
    """A stage that gives the kind of evidence of its name."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """The options of a command that go with it."""

    FOLLOWS: ClassVar[str] = ""
    """The kind of evidence that it is made of, with which a command asks for it; empty where it is asked for itself."""

    @classmethod
    @abstractmethod
    def from_options(cls: type[Stage], given: Mapping[str, Any], annotator: Annotator | None, tasks: Any) -> Stage:
        """The stage that the options of a command name; ``given`` has None for what was not given.

        Raises:
            ConfigurationError: a value is out of range, or nobody is named who gives such evidence.
        """

    reuse: bool = False
    """Whether rows that have this evidence already are left alone."""

    @property
    def reusable(self) -> bool:
        """Whether it can leave such rows alone."""
        return False

    @property
    def known_by(self) -> tuple[str, ...]:
        """Columns that are not null in rows about which nothing is asked; none where every row is asked about."""
        return tuple(self.types(None)) if self.reuse else ()

    def _known(self, row: Row) -> Row | None:
        """The evidence that a row has, None where it is to be asked about."""
        known = {column: row.get(column) for column in self.known_by}
        return None if not known or None in known.values() else known

    def _inputs(self, columns: Iterable[str]) -> list[str]:
        found = list(columns)
        return list(dict.fromkeys([*super()._inputs(found), *(name for name in self.known_by if name in found)]))

    def requests(self, rows: pa.Table) -> int | None:
        """How many requests rows need; None where only evidence tells that these rows do not have yet."""
        return 0

    def statistics(self) -> dict[str, Any]:
        """What a server was asked that no annotator stands for; empty for none."""
        return {}

    def kept_at(self: Stage, place: Callable[[Path], Path]) -> Stage:
        """This stage with its store of what such a server replied in the folder that ``place`` gives for it."""
        return self

    def shared_by(self: Stage, processes: int) -> Stage:
        """This stage in one of several processes that share such a server."""
        return self

    def description(self) -> dict[str, Any]:
        """Whose evidence it is, for the card; at least ``annotator``, a name."""
        return {"annotator": self.NAME, "baseline": False}


@documented
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AnnotatedTransform(EvidenceStage, ConnectionOptions):
    """A transform that asks an annotator.

    Args:
        annotator: Who gives the evidence; or else ``endpoint``, or else the environment (``ARHN_ENDPOINT``, several
            with commas, ``ARHN_MODEL``).
        endpoint: URL of an LLM server, or several of the same model.
        model: The model that has to answer there; by default the one that the server names.
        revision: Its commit sha; by default the one that the server names.
        cache: Folder of the store of replies, ``"none"`` for none; by default ``ARHN_CACHE`` or the user's cache.
        client: Instead of ``endpoint``, a ``huggingface_hub.AsyncInferenceClient`` of yours.
        reuse: Leave rows alone that have this evidence already, and ask about the others.
        tasks: A task for all rows (``"question"``, ``"claim"``, ``"argument"``, ``"title"``), or a mapping from
            ``subset`` to task that goes before the built-in one.

    Raises:
        ConfigurationError: options exclude each other or are out of range.
    """

    annotator: Annotator | None = None
    endpoint: str | tuple[str, ...] | None = None
    model: str | None = None
    revision: str | None = None
    cache: str | os.PathLike[str] | None = None
    client: AsyncInferenceClient | None = field(default=None, repr=False)
    tasks: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        check_annotator("annotator", self.annotator)
        check_urls(self.endpoint)
        self.check_connection()
        if sum(given is not None for given in (self.annotator, self.endpoint, self.client)) > 1:
            raise ConfigurationError(
                f"arhn.{self.NAME} got several of annotator=, endpoint= and client=; one of them was expected. "
                "arhn.Endpoint(url, ...) is the annotator behind an endpoint."
            )
        if isinstance(self.endpoint, list):
            object.__setattr__(self, "endpoint", tuple(self.endpoint))
        self._given()  # refuses wrong values here rather than in the first row

    OPTIONAL: ClassVar[tuple[str, ...]] = (QUERY_ID, SUBSET, records.DECISION)
    ASKS: ClassVar[str]
    """The method of the annotator that is asked."""

    @classmethod
    def from_options(cls: type[Self], given: Mapping[str, Any], annotator: Annotator | None, tasks: Any) -> Self:
        """The stage with this annotator, which has to give such evidence."""
        options = {name: given[name] for name in cls.OPTIONS if given.get(name) is not None}
        stage = cls(annotator=annotator, tasks=tasks, **options)
        stage.check_annotator_gives()
        return stage

    def check_annotator_gives(self) -> None:
        """Refuse an annotator that lacks what this stage asks, before anything is asked.

        Raises:
            ConfigurationError: says what it lacks, and who has it.
        """
        self.configured.check_gives(self.ASKS, self.NAME)

    @property
    def prompts_of(self) -> tuple[str, ...]:
        """The prompts that an LLM is asked with, by their names in ``Prompts``."""
        return (self.NAME,)

    def requests(self, rows: pa.Table) -> int | None:
        """One a passage."""
        return sum(int(lengths_in(rows, side.passages)[0].sum()) for side in LABELLED)

    def description(self) -> dict[str, Any]:
        """The annotator's."""
        return self.configured.description()

    def __repr__(self) -> str:
        who = self._given() or "the environment's"
        return f"{type(self).__name__}(annotator={who!r})"

    @property
    def configured(self) -> Annotator:
        """The annotator that is asked: the one that was given, or the one behind the endpoint.

        Raises:
            ConfigurationError: there is none; the message names the three ways to configure one.
        """
        if (given := self._given()) is not None:
            return given
        urls = urls_of_environment()
        if not urls:
            raise ConfigurationError(THREE_WAYS.format(name=self.NAME))
        return self._behind(urls, self.model or os.environ.get("ARHN_MODEL"))

    def asking(self: Self, annotator: Annotator) -> Self:
        """The same stage with another annotator, or with the same one in another form."""
        return self.with_options(annotator=annotator, endpoint=None, client=None)

    @property
    def awaits(self) -> bool:
        """Whether the annotator waits; False also where there is none, so that the call itself says so."""
        try:
            return self.configured.awaits
        except ConfigurationError:
            return False

    @property
    def required(self) -> tuple[str, ...]:
        """The canonical columns."""
        return (QUERY, POSITIVE.passages, NEGATIVE.passages)

    def types(self, schema: pa.Schema | None) -> Mapping[str, pa.DataType | None]:
        """One value a passage of both sides, of the kind that has the name of the stage."""
        return records.types_of((self.NAME,), LABELLED)

    def identity(self) -> dict[str, Any]:
        """The annotator's identity for this stage, and the tasks."""
        tasks = self.tasks if isinstance(self.tasks, str) else {**SUBSET_TASKS, **(self.tasks or {})}
        return {"annotator": self.configured.identity(self.NAME), "tasks": tasks}

    @property
    def reusable(self) -> bool:
        """True."""
        return True

    async def apply(self, rows: Sequence[Row]) -> list[Row]:
        """The evidence on each row; all requests of all rows are under way together.

        Raises:
            SchemaError: a row has no query, or was relabelled, so that its lists are no longer those of the source.
        """
        for row in rows:
            check_source(self.NAME, row)
        return await gathered((self._given_on(row) for row in rows), concurrently=self.awaits)

    async def _given_on(self, row: Row) -> Row:
        known = self._known(row)
        return await self.annotate(row) if known is None else known

    @abstractmethod
    async def annotate(self, row: Row) -> Row:
        """The evidence columns of one row."""

    async def each_passage(
        self,
        row: Row,
        request: Callable[..., Asked],
        screened: Callable[[Sequence[Asked], Sequence[Asked]], Awaitable[Sequence[Given | None]]],
        ask: Callable[[Asked], Awaitable[Given]],
        checked: Callable[[Given, records.Passage], Given],
        packed: tuple[Callable[[Sequence[Asked]], Awaitable[Sequence[Given]]], int] | None = None,
    ) -> Row:
        """What the annotator gives on each passage, checked; asked where ``screened`` does not say it.

        ``packed`` is how it is asked about several passages together, and about how many, instead of by ``ask``.
        """
        annotator, background, task = self.configured, background_of(row), self.task(row)
        positives, negatives = (list(passages_of(row, side.passages)) for side in LABELLED)
        passages, first = (*positives, *negatives), len(positives)
        requests = [request(query=row[QUERY], passage=one, task=task, background=background) for one in passages]
        await annotator.turn(len(requests) if packed is None else math.ceil(len(requests) / packed[1]))
        known = await screened(requests[:first], requests[first:])
        asked = [one for one, reply in zip(requests, known, strict=True) if reply is None]
        if packed is None:
            replies = iter(await gathered(map(ask, asked), concurrently=annotator.awaits))
        else:
            replies = iter(await packed[0](asked))
        given = [next(replies) if one is None else one for one in known]
        found = [checked(reply, passage) for reply, passage in zip(given, passages, strict=True)]
        values = [dict(vars(reply)) for reply in found]
        return {POSITIVE.column(self.NAME): values[:first], NEGATIVE.column(self.NAME): values[first:]}

    def task(self, row: Row) -> str:
        """The task of a row."""
        return task_of(row.get(SUBSET), self.tasks)

    def _given(self) -> Annotator | None:
        """The annotator of the options, None for the environment's."""
        if self.endpoint is not None or self.client is not None:
            return self._behind(self.endpoint, self.model)
        return self.annotator

    def _behind(self, urls: str | tuple[str, ...] | None, model: str | None) -> Endpoint:
        """The annotator behind these servers, one and the same for the whole life of the stage."""
        made: dict[Any, Endpoint] = self.__dict__.setdefault("_endpoints", {})  # no field: it is not pickled
        endpoint = made.get((urls, model))
        if endpoint is None:
            options = {**self.connection(), "revision": self.revision, "cache": self.cache, "client": self.client}
            endpoint = made[urls, model] = Endpoint(urls, model=model, **options)
        return endpoint


@cache
def known_stages() -> Mapping[str, type[EvidenceStage]]:
    """The stage of each kind of evidence, of the files of this folder, in the order of the table of kinds."""
    names = [module.__name__ for module in modules_in(evidence)]
    found = {cls.NAME: cls for cls in subclasses_of(EvidenceStage) if cls.__module__ in names and vars(cls).get("NAME")}
    return {kind: found[kind] for kind in records.EVIDENCE_KINDS if kind in found}


def check_urls(given: object) -> None:
    """Refuse what the annotator behind ``endpoint`` could only stumble over."""
    urls = given if isinstance(given, (list, tuple)) else (given,)
    if given is None or all(isinstance(url, str) for url in urls):
        return
    advice = 'endpoint="http://localhost:8080", or several of the same model'
    if isinstance(given, (type, Annotator)):
        advice = 'endpoint="http://localhost:8080", or an annotator as annotator=arhn.Endpoint(url, ...)'
    shown = [_shown(one) for one in urls] if isinstance(given, (list, tuple)) else given
    raise ConfigurationError(f"endpoint is {shorten(repr(shown))}; the URL of a server was expected: {advice}.")


def check_annotator(name: str, given: object) -> None:
    """Refuse what is neither an annotator nor None, as the option ``name``.

    Raises:
        ConfigurationError: says what was given, and how to say it.
    """
    if given is None or isinstance(given, Annotator):
        return
    if isinstance(given, type) and issubclass(given, Annotator):
        own = "arhn." if given.__module__.startswith("arhn_datasets.") else ""
        raise ConfigurationError(
            f"{name} is the class {given.__name__}; an instance was expected: {name}={own}{given.__name__}(...)."
        )
    advice = f"such as {name}=arhn.Lexical() or {name}=arhn.Endpoint(url)"
    if isinstance(given, str):
        alone = 'endpoint="http://localhost:8080"'
        advice = f'{name}=arhn.Endpoint("http://localhost:8080") for the LLM behind a URL'
        advice += f", or {alone} instead of it" if name == "annotator" else ""
    raise ConfigurationError(f"{name} is {shorten(repr(_shown(given)))}; an arhn.Annotator was expected: {advice}.")


def _shown(given: object) -> object:
    """The same for a message, where a URL may hold a password."""
    if not isinstance(given, str) or "://" not in given:
        return given
    try:
        return shown_url(given)
    except ValueError:
        return "a URL that cannot be read"


def check_source(stage: str, row: Row, *, asks: bool = True) -> None:
    """Refuse a row without a query where it is asked for, and one whose lists are no longer those of the source.

    Raises:
        SchemaError: names the row, and what to do.
    """
    query = row[QUERY]
    if asks and not isinstance(query, str):
        found = "null" if query is None else f"a value of the type {type(query).__name__}"
        named = f"{QUERY_ID} {row[QUERY_ID]!r}" if row.get(QUERY_ID) is not None else f"the row has no {QUERY_ID}"
        raise SchemaError(
            f"arhn.{stage} got a row whose {QUERY!r} holds {found} ({named}); a text was expected. Correct the row, or "
            f'leave such rows out first: ds.filter(lambda row: isinstance(row["{QUERY}"], str)).'
        )
    if row.get(records.DECISION) is not None:
        raise SchemaError(
            f"arhn.{stage} got a relabelled row (query {query!r}); source rows were expected. "
            "Go back first: ds.map(arhn.revert)."
        )


def unparsed(reply: Callable[..., Given], said: str) -> Given:
    """A reply that says nothing, and why."""
    return reply(status=records.UNPARSED, detail=shorten(said))


def background_of(row: Row) -> tuple[str, ...]:
    """The texts of all passages of a row, sorted, so that the order of the row changes nothing."""
    return tuple(sorted(records.text_of(one) for side in LABELLED for one in passages_of(row, side.passages)))
