"""Repair the hard negatives of retrieval training sets with the evidence of an LLM (ARHN, arXiv 2604.11092)."""

from arhn_datasets.adapt import Adapt, adapt, adapt_dataset
from arhn_datasets.annotators import Annotator, Endpoint, Lexical, Local
from arhn_datasets.errors import ArhnError
from arhn_datasets.evidence import with_evidence
from arhn_datasets.export import export
from arhn_datasets.extraction import Snippets, snippets
from arhn_datasets.prompts import PROMPTS, Prompts
from arhn_datasets.push import push
from arhn_datasets.ranking import Ranks, ranks
from arhn_datasets.relabeling import Relabel, Revert, is_kept, relabel, revert
from arhn_datasets.verify import verify

__version__ = "0.1.0"

__all__ = [
    "PROMPTS",
    "Adapt",
    "Annotator",
    "ArhnError",
    "Endpoint",
    "Lexical",
    "Local",
    "Prompts",
    "Ranks",
    "Relabel",
    "Revert",
    "Snippets",
    "adapt",
    "adapt_dataset",
    "export",
    "is_kept",
    "push",
    "ranks",
    "relabel",
    "revert",
    "snippets",
    "verify",
    "with_evidence",
]
