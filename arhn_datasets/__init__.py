"""Repair the hard negatives of retrieval training sets with the evidence of an LLM (ARHN, arXiv 2604.11092).

The folders are the way of a row::

    1. inputs/      a file, a folder or a dataset of the Hub  ->  canonical rows
    2. evidence/    + what is asked on each passage           <-  annotators/ (who is asked), client/ (how)
    3. rules/       evidence  ->  new labels, and back        (pure functions of columns)
    4. folder/      rows  ->  Parquet, run.json and a card    (what a run writes and anybody reads)
    5. formats/     rows  ->  what a trainer's loader reads
    6. runs/        1 to 4 in one go, by one engine: in a process, as shards, on a cluster
    7. checks/      a folder  ->  is it true, is it right     (verification, evaluation, audit)
    8. hub/         a folder  ->  a published dataset         (the only one that writes to the Hub)
    9. cli/         a file for each command                   (the only one that prints)

Beside them, ``rows/`` says what a row and a stage are, ``errors.py`` what can go wrong, and ``testing/`` is an emulator
of a server. A folder imports only from those before it.
"""

from arhn_datasets.annotators.cascade import Cascade
from arhn_datasets.annotators.endpoint import Endpoint
from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.lexical import Lexical
from arhn_datasets.annotators.local import Local
from arhn_datasets.annotators.prompts import PROMPTS, Prompts
from arhn_datasets.checks.evaluation import Evaluation, evaluate
from arhn_datasets.checks.verification import verify
from arhn_datasets.errors import ArhnError
from arhn_datasets.evidence.grades import Grades, grades
from arhn_datasets.evidence.ranks import Ranks, ranks
from arhn_datasets.evidence.scores import Scores
from arhn_datasets.evidence.snippets import Snippets, snippets
from arhn_datasets.evidence.verdicts import Verdicts, verdicts
from arhn_datasets.folder.evidence_table import with_evidence
from arhn_datasets.formats.exporting import export
from arhn_datasets.hub.pushing import push
from arhn_datasets.inputs.adaptation import Adapt, adapt, adapt_dataset
from arhn_datasets.rules.adaptive_margin import AdaptiveMargin
from arhn_datasets.rules.ambiguous_sampling import AmbiguousSampling
from arhn_datasets.rules.arhn import Relabel, relabel
from arhn_datasets.rules.positive_aware import PositiveAware
from arhn_datasets.rules.revert import Revert, revert
from arhn_datasets.rules.rule import is_kept

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
