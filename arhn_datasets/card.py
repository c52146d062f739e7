"""The dataset card: a template with the facts of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from arhn_datasets.report import Report

TAGS = ("arhn", "hard-negatives", "sentence-transformers", "information-retrieval")
TASK_CATEGORIES = ("text-retrieval", "text-ranking", "sentence-similarity")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
BASELINE_WARNING = (
    "> **The annotator was a lexical baseline, not an LLM.** It tells passages that share words with the query from "
    "those that do not; it cannot tell an answer from a passage about the same subject. Do not train on these labels "
    "as if an LLM had given them.\n\n"
)


def render_card(run: Mapping[str, Any], report: Report, *, configs: Mapping[str, Mapping[str, str]]) -> str:
    """The README.md of a refined dataset.

    Args:
        run: The content of ``run.json``.
        report: The counts.
        configs: For each configuration, the path pattern of each split.
    """
    source, annotator = run["source"], run["annotator"]
    splits = list(configs["default"])
    body = Template(_template()).substitute(
        title=_inline(f"{source['name']}, refined with ARHN"),
        warning=BASELINE_WARNING if annotator.get("baseline") else "",
        source_sentence=_source_sentence(source),
        version=_inline(run["versions"]["arhn_datasets"]),
        policy=run["parameters"]["relabel"]["policy"],
        repository="PATH_OR_REPO_ID",
        split=splits[0],
        counts=_counts_table(report),
        snippet_statuses=_statuses(report.total.snippets),
        ranking_statuses=_statuses(report.total.rankings),
        decision_statuses=_statuses(report.total.decisions),
        annotator=_bullets(annotator),
        parameters=_bullets({f"{stage}: {k}": v for stage, s in run["parameters"].items() for k, v in s.items()}),
    )
    return f"---\n{_metadata(run, report, configs)}---\n\n{body}"


def _template() -> str:
    # The template is at the top of the repository; the wheel carries it inside the package.
    for root in (files("arhn_datasets"), Path(__file__).parents[1]):
        template = root / "dataset_cards" / "card.md"
        if template.is_file():
            return template.read_text(encoding="utf-8")
    raise FileNotFoundError("dataset_cards/card.md is missing from this installation; reinstall arhn_datasets.")


def _metadata(run: Mapping[str, Any], report: Report, configs: Mapping[str, Mapping[str, str]]) -> str:
    from huggingface_hub import DatasetCardData

    source = run["source"]
    data = DatasetCardData(
        pretty_name=f"{source['name']}, refined with ARHN",
        annotations_creators=["machine-generated"],
        task_categories=list(TASK_CATEGORIES),
        source_datasets=[source["name"]] if source["kind"] == "hub" else None,
        size_categories=[next((name for limit, name in SIZES if report.total.rows < limit), "n>1M")],
        tags=[*TAGS, *(["lexical-baseline"] if run["annotator"].get("baseline") else [])],
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": split, "path": path} for split, path in splits.items()],
                # `load_dataset` of a folder caches by this entry and not by the files: without something of the run in
                # it, another run in a folder of the same name would be served from the cache.
                "description": f"arhn_datasets run {run['id']}",
                **({"default": True} if name == "default" else {}),
            }
            for name, splits in configs.items()
        ],
    )
    return str(data.to_yaml()) + "\n"


def _source_sentence(source: Mapping[str, Any]) -> str:
    if source["kind"] == "hub":
        at = f" at revision `{_inline(source['revision'])}`" if source.get("revision") else ""
        return f"Source: [`{_inline(source['name'])}`](https://huggingface.co/datasets/{_inline(source['name'])}){at}."
    return f"Source: `{_inline(source['name'])}`."


def _counts_table(report: Report) -> str:
    columns = ("rows", "positives", "negatives", "relabelled", "filtered", "kept")
    lines = [f"| subset | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {_inline(name)} | {' | '.join(f'{getattr(counts, column):,}' for column in columns)} |"
        for name, counts in report.rows()
    ]
    return "\n".join(lines)


def _statuses(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} `{status}`" for status, count in counts.items()) or "none"


def _bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_inline(name)}: {_value(value)}" for name, value in facts.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`" if re.fullmatch(r"[\w.,+@/:()= -]+", str(value)) else _inline(value)


def _inline(value: Any) -> str:
    """A value that cannot leave its place in a line of Markdown: one line, no markup, no table bars."""
    line = " ".join(str(value).split())
    return re.sub(r"[`|<>\[\]*$]", lambda found: f"&#{ord(found.group())};", line)
