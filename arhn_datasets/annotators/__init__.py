"""Who gives snippets and rankings: an LLM endpoint, a local transformers model, the lexical baseline."""

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.annotators.llm import LLMAnnotator
from arhn_datasets.annotators.local import Local
from arhn_datasets.annotators.served import Endpoint

__all__ = ["Annotator", "Endpoint", "LLMAnnotator", "Lexical", "Local"]
