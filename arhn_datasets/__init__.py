"""Repair the hard negatives of retrieval training sets with the evidence of an LLM (ARHN, arXiv 2604.11092)."""

from arhn_datasets.adapt import Adapt, adapt, adapt_dataset
from arhn_datasets.annotators import Annotator, Cascade, Endpoint, Lexical, Local
from arhn_datasets.errors import ArhnError
from arhn_datasets.evaluation import Evaluation, evaluate
from arhn_datasets.evidence import with_evidence
from arhn_datasets.export import export
from arhn_datasets.extraction import Snippets, snippets
from arhn_datasets.grading import Grades, grades
from arhn_datasets.prompts import PROMPTS, Prompts
from arhn_datasets.push import push
from arhn_datasets.ranking import Ranks, ranks
from arhn_datasets.relabeling import Relabel, Revert, is_kept, relabel, revert
from arhn_datasets.rivals import AdaptiveMargin, AmbiguousSampling, PositiveAware
from arhn_datasets.scoring import Scores
from arhn_datasets.verdicts import Verdicts, verdicts
from arhn_datasets.verify import verify

__version__ = "0.1.0"

__all__ = [
    "PROMPTS",
    "Adapt",
    "AdaptiveMargin",
    "AmbiguousSampling",
    "Annotator",
    "ArhnError",
    "Cascade",
    "Endpoint",
    "Evaluation",
    "Grades",
    "Lexical",
    "Local",
    "PositiveAware",
    "Prompts",
    "Ranks",
    "Relabel",
    "Revert",
    "Scores",
    "Snippets",
    "Verdicts",
    "adapt",
    "adapt_dataset",
    "evaluate",
    "export",
    "grades",
    "is_kept",
    "push",
    "ranks",
    "relabel",
    "revert",
    "snippets",
    "verdicts",
    "verify",
    "with_evidence",
]
