"""The annotator of batch rounds: replies of the store are its evidence, and what is missing is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from arhn_datasets.annotators.client import contract
from arhn_datasets.annotators.client.planning import Plan
from arhn_datasets.annotators.endpoint import Endpoint
from arhn_datasets.annotators.llm import LLMAnnotator, Shared, kept_under, shared
from arhn_datasets.errors import ConfigurationError, NotYetAnsweredError
from arhn_datasets.rows import background


@dataclass(frozen=True, eq=False)
class Rounds(Endpoint):
    """An LLM that is asked in batches: its evidence and its identity are those of an endpoint with this model.

    Args:
        plan: Where requests go that the store has no reply to.

    Raises:
        ConfigurationError: there is neither a model nor an endpoint to ask for its name.
    """

    NAME = ""

    _: KW_ONLY
    plan: Plan = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        LLMAnnotator.__post_init__(self)
        if self.model is None and not self.urls:
            raise ConfigurationError(
                "--plan needs --model ID, the model that the batches will ask, by the name that their provider knows "
                "it by (or --endpoint URL of a server that tells it)."
            )
        object.__setattr__(self, "url", tuple(contract.base_url(url) for url in self.urls) or None)
        self.check_connection()

    async def server(self) -> contract.ServerInfo:
        """What is said of the model; a server is only asked where the model was not named."""
        if self.model is None:
            return await super().server()
        return contract.ServerInfo(api=contract.OPENAI, model=self.model, revision=self.revision)

    def samples(self) -> bool:
        """Whether the provider takes no temperature."""
        return "temperature" in self.plan.refused(self.model)

    async def complete(self, request: contract.ChatRequest) -> contract.Completion:
        """No reply is here."""
        raise NotYetAnsweredError("A request of this round has no reply yet.")

    def statistics(self) -> dict[str, Any]:
        """What the rounds of the plan have brought, as if it had been asked now."""

        async def read() -> dict[str, Any]:
            return {**asdict(self.plan.served), **shared().counts}

        return background.run(read())

    async def _ask(
        self, ours: Shared, key: str, request: contract.ChatRequest, model: Mapping[str, Any], *more: Any
    ) -> contract.Completion:
        under = kept_under(key, self.samples())
        try:
            completion = await super()._ask(ours, key, request, model, *more)
        except NotYetAnsweredError:
            return self.plan.asked(under, request, model)
        if self.plan.answered(under, completion):
            ours.stored(completion.prompt_tokens, completion.completion_tokens, replies=-1)
        return completion

    def _most_under_way(self) -> int:
        return LLMAnnotator._most_under_way(self)
