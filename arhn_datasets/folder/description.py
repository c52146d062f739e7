"""What ``run.json`` says of a run: where its rows came from, who was asked and what, and which rule made the labels."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from arhn_datasets.annotators.interface import Annotator
from arhn_datasets.annotators.prompts import Prompts
from arhn_datasets.evidence.scores import Scores
from arhn_datasets.evidence.stage import AnnotatedTransform
from arhn_datasets.folder.report import Report
from arhn_datasets.folder.run import RUN_FORMAT
from arhn_datasets.rows.records import digest
from arhn_datasets.rows.stage import Transform

VERSIONED = ("datasets", "huggingface_hub", "pyarrow")


def describe_run(
    provenance: Mapping[str, Any],
    transforms: Sequence[Transform],
    report: Report,
    durations: Mapping[str, float],
    requests: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``run.json``: everything needed to repeat the run, and nothing secret."""
    annotator = next((found.configured for found in transforms if isinstance(found, AnnotatedTransform)), None)
    described = annotator or next((found for found in transforms if isinstance(found, Scores)), None)
    return {
        "format": RUN_FORMAT,
        "id": uuid.uuid4().hex,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "arhn_datasets": version("arhn_datasets"),
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONED},
        },
        "source": dict(provenance),
        "annotator": {"annotator": "not recorded"} if described is None else described.description(),
        **configuration(transforms),
        "prompts": _prompt_texts(annotator),
        "counts": report.to_json(),
        "durations_seconds": {stage: round(seconds, 3) for stage, seconds in durations.items()},
        "requests": dict(requests or {}),
    }


def configuration(transforms: Sequence[Transform]) -> dict[str, Any]:
    """What changes the result of a run beside its input: the identities of the annotators, and the parameters."""
    parameters, annotators = {}, {}
    for transform in transforms:
        identity = transform.identity()
        if isinstance(transform, AnnotatedTransform):
            annotators[transform.NAME] = identity.pop("annotator")
        parameters[transform.NAME] = identity
    return {"identity": annotators, "parameters": parameters}


def _prompt_texts(annotator: Annotator | None) -> dict[str, dict[str, str]]:
    """What an LLM was asked in each task, with places for what differs; nothing where there are no prompts."""
    prompts = getattr(annotator, "prompts", None)
    if not isinstance(prompts, Prompts):
        return {}
    texts = {
        task: {
            "snippet": prompts.snippet_messages("{query}", {"title": "", "text": "{passage}"}, task)[0]["content"],
            "ranking": prompts.ranking_messages("{query}", ["{snippet}", "{snippet}"], task)[0]["content"],
        }
        for task in prompts.tasks
    }
    return {task: {"version": prompts.version, "hash": digest(text)[:16], **text} for task, text in texts.items()}
