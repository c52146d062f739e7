"""Who gives evidence: an LLM endpoint, a local transformers model, the lexical baseline, or a cascade of two."""

from arhn_datasets.annotators.cascade import Cascade
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.annotators.llm import LLMAnnotator
from arhn_datasets.annotators.local import Local
from arhn_datasets.annotators.served import Endpoint

__all__ = ["Annotator", "Cascade", "Endpoint", "LLMAnnotator", "Lexical", "Local"]
