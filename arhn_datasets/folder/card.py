"""The dataset card: what was done to a dataset, in what words, with what result, and how to load it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder.report import Report
from arhn_datasets.rows.records import (
    DECISION_STATUSES,
    FILTERED,
    GROUNDED,
    JUDGEMENT_STATUSES,
    NEGATIVE,
    POSITIVE,
    QUERY,
    RANKING_STATUSES,
    SNIPPET_STATUSES,
    SUBSET,
    Row,
    shorten,
)

if TYPE_CHECKING:
    from datasets import Features

BEGIN, END = "<!-- arhn_datasets:begin -->", "<!-- arhn_datasets:end -->"
REFINED, PUBLISHED = "refined", "published"

TAGS = ("arhn", "hard-negatives", "sentence-transformers", "information-retrieval")
BASELINE_TAG = "lexical-baseline"
CHANGED_ROWS = 5  # that the card shows
TASK_CATEGORIES = ("text-retrieval", "text-ranking", "sentence-similarity")
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
# What describes the files: an older README is wrong about them.
OWN_KEYS = ("configs", "dataset_info", "size_categories")

BASELINE_WARNING = (
    "> **The annotator was a lexical baseline, not an LLM.** It tells passages that share words with the query from "
    "those that do not; it cannot tell an answer from a passage about the same subject. **Do not train on these labels "
    "as if an LLM had given them.**\n\n"
)
POLICIES: Mapping[str, str] = {
    "relabel": "A negative that was ranked above the {reference}{ties} became a positive; all others stayed.",
    "filter": "Every negative that holds a snippet left the negatives; none became a positive.",
    "relabel+filter": "A negative that was ranked above the {reference}{ties} became a positive. One that holds a "
    "snippet and was ranked below it is ambiguous: it left the negatives and became no positive.",
}
UNSUPPORTED: Mapping[str, str] = {
    "filter": " Where no positive holds a snippet, nothing can be compared: negatives that hold one left the "
    "negatives.",
    "keep": " Where no positive holds a snippet, nothing can be compared: all negatives stayed.",
    "relabel": " Where no positive holds a snippet, negatives that hold one became positives.",
}
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "snippets": {
        "grounded": "the words stand in the passage",
        "no_answer": "the annotator found no answer in the passage",
        "ungrounded": "the words are not in the passage; it stayed where it was",
        "unparsed": "the reply could not be read; the passage stayed where it was",
        "error": "there was no reply; the passage stayed where it was",
    },
    "rankings": {
        "ranked": "every candidate has a rank",
        "partial": "the reply left candidates out; those stayed where they were",
        "unparsed": "the reply could not be read; the row stayed as it was",
        "error": "there was no reply; the row stayed as it was",
        "skipped": "there was nothing to order",
    },
    "verdicts": {
        "judged": "the annotator compared the passage with the positives",
        "unparsed": "the reply could not be read; the passage stayed where it was",
        "error": "there was no reply; the passage stayed where it was",
        "skipped": "there was nothing to judge",
    },
    "grades": {
        "judged": "the annotator graded the passage",
        "unparsed": "the reply could not be read; the passage stayed where it was",
        "error": "there was no reply; the passage stayed where it was",
        "skipped": "there was nothing to judge",
    },
    "rows": {
        "changed": "at least one passage moved",
        "unchanged": "no passage moved",
        "guarded": "left as it came, because a guard of the parameters forbids the result",
        "dropped": "left out of the rows for trainers by a guard of the parameters",
    },
}
CONFIGURATIONS: Mapping[str, str] = {
    "default": "rows in the form of the source: query, positives and negatives after relabelling",
    "dropped": "rows that a guard of the parameters left out, as they came",
    "evidence": "a row for each query and passage: origin, label, snippet with its place, rank, statuses, and the "
    "passages that were filtered",
    "triplet": "`anchor`, `positive`, `negative`",
    "n-tuple": "`anchor`, `positive`, `negative_1`",
    "labeled-list": "`query`, `docs`, `labels`",
    "pair": "`anchor`, `positive`",
    "labeled-pair": "`query`, `passage`, `label`",
    "corpus": "`_id`, `title`, `text` of every passage",
    "queries": "`_id`, `text` of every query",
    "qrels": "`query-id`, `corpus-id`, `score`: 2 is a positive, 1 a filtered passage",
}
# What no configuration loads: `datasets` reads all configurations of a repository as files of one type.
FILES: Mapping[str, str] = {
    "flagembedding": "`flagembedding/SPLIT.jsonl`: `query`, `pos`, `neg` for FlagEmbedding",
    "beir": "`beir/`: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` in BEIR's form",
}
TUPLES: Mapping[str, str] = {
    "triplet": "a row for each positive and negative",
    "n-tuple": "a row for each positive, with the same number of negatives in every row",
    "pair": "a row for each positive, the negatives are those of the batch",
}
# Section of a trainer, and the configurations or files that it needs.
TRAINERS: Mapping[str, tuple[str, ...]] = {
    "labeled-list": ("labeled-list",),
    "labeled-pair": ("labeled-pair",),
    "tevatron": ("default",),
    "flagembedding": ("flagembedding",),
    "mteb": ("corpus", "queries", "qrels"),
    "beir": ("beir",),
}
NAME_CHARACTERS, QUERY_CHARACTERS, SNIPPET_CHARACTERS, AROUND_CHARACTERS = 100, 300, 320, 90
SHOWN_PASSAGES = 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What no run can know of a dataset, from its publisher.

    ``description`` and ``limitations`` are Markdown, ``citation`` is BibTeX, ``license`` and ``language`` are the ids
    of the Hub.
    """

    pretty_name: str | None = None
    description: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    citation: str | None = None
    tags: tuple[str, ...] = ()
    source_datasets: tuple[str, ...] = ()
    homepage: str | None = None
    limitations: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration of the repository.

    ``splits`` has the path pattern of each split, ``sizes`` its number of rows and of bytes.
    """

    splits: Mapping[str, str]
    features: Features | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """All that a card says.

    Args:
        run: The content of ``run.json``.
        report: The counts.
        configs: The configurations, ``default`` among them.
        layout: ``"refined"`` or ``"published"``.
        repo_id: Where the dataset will be loaded from.
        changed: Some changed rows with all evidence columns.
        charts: ``"light"`` and ``"dark"`` to a path in the repository.
        facts: What the publisher says.
        license: The licence that the publisher gives; by default that of ``facts``, else that of the source.
    """

    run: Mapping[str, Any]
    report: Report
    configs: Mapping[str, Config]
    layout: str
    repo_id: str | None = None
    changed: Sequence[Row] = ()
    charts: Mapping[str, str] = field(default_factory=dict)
    facts: Facts | None = None
    license: str | None = None

    @property
    def stated(self) -> Facts:
        """The facts, empty where there are none."""
        return self.facts or Facts()

    @property
    def given_license(self) -> str | None:
        """The licence that the publisher gives."""
        return self.license or self.stated.license


def render_card(content: CardContent) -> str:
    """The README.md of a dataset: metadata, and a page in a marked block that :func:`merge_card` can replace."""
    run, facts = content.run, content.stated
    source, annotator, parameters = run["source"], run["annotator"], run["parameters"]
    published = content.layout == PUBLISHED
    body = _template("card").substitute(
        title=_inline(_title(content)),
        warning=BASELINE_WARNING if annotator.get("baseline") else "",
        description=f"{facts.description.strip()}\n\n" if facts.description else "",
        source_sentence=_source_sentence(source),
        version=_inline(run["versions"]["arhn_datasets"]),
        summary=_summary(content.report),
        ranks_sentence=_ranks_sentence(parameters),
        policy_sentence=_policy_sentence(parameters["relabel"]),
        chart=_chart(content),
        counts=counts_table(content.report),
        statuses=_statuses_table(content.report),
        changed=_changed(content.changed),
        load=_load(content),
        columns_title="Configurations" if published else "Columns",
        columns_anchor="configurations" if published else "columns",
        columns=_template(f"sections/columns-{content.layout}").substitute(configurations=_configurations(content)),
        annotator_sentence=_annotator_sentence(annotator),
        annotator=_facts_table("annotator", {name: value for name, value in annotator.items() if name != "baseline"}),
        parameters=_parameters_table(parameters),
        prompts=_prompts(run.get("prompts") or {}),
        limits=_limits(content),
        source_bullets=_source_bullets(content),
        citation=f"\n{_fenced(facts.citation, 'bibtex')}\n" if facts.citation else "",
    )
    # No value may end the block; a word joiner is not seen.
    body = re.sub(r"<!--(?=\s*arhn_datasets:)", "<!--\u2060", body.strip("\n"))
    return f"---\n{_dump(_metadata(content))}---\n\n{BEGIN}\n{body}\n{END}\n"


def counts_table(report: Report) -> str:
    """The counts by subset as a Markdown table, from the source to the result."""
    header = ("subset", "rows", "positives", "negatives", "relabelled", "filtered", "kept")
    lines = [
        (
            _inline(shorten(name, NAME_CHARACTERS)),
            f"{counts.rows:,}",
            f"{counts.positives:,} → {counts.positives + counts.relabelled:,}",
            f"{counts.negatives:,} → {counts.kept:,}",
            f"{counts.relabelled:,}",
            f"{counts.filtered:,}",
            f"{counts.kept:,}",
        )
        for name, counts in report.rows()
    ]
    return _table(header, lines)


def merge_card(existing: str, rendered: str, *, license_given: bool = False) -> str:
    """``rendered`` in an existing README: its block replaces an earlier one or follows the text that is there.

    Metadata that this package does not know stays, lists are united, and single values stay as they are there, except
    for what describes the files, and for the licence where ``license_given`` says that the publisher gave it now. Text
    outside of the block stays byte for byte. Merging twice is merging once.

    Raises:
        InputError: the existing metadata are no YAML.
    """
    theirs, text = _split(existing)
    ours, page = _split(rendered)
    block = page.strip("\n")
    found = re.search(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", text, re.DOTALL)
    if found:
        text = text[: found.start()] + block + text[found.end() :]
    elif text:
        gap = "" if text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        text = f"{text}{gap}{block}\n"
    else:
        text = f"\n{block}\n"
    if not theirs and not text.startswith(("\n", "\r")):
        text = f"\n{text}"
    return f"---\n{_dump(_merged(theirs, ours, license_given))}---\n{text}"


def load_facts(path: str | os.PathLike[str]) -> Facts:
    """The facts of a YAML file; ``dataset_cards/facts.example.yaml`` explains each.

    Raises:
        ConfigurationError: the file is not there or no YAML, or holds something else.
    """
    known = [one.name for one in fields(Facts)]
    example = "see dataset_cards/facts.example.yaml"
    try:
        found = _read_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {_one_line(error)}. Expected a YAML file; {example}."
        ) from error
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{path} holds {type(found).__name__}; a mapping with {', '.join(known)} was expected; {example}."
        )
    if unknown := [str(name) for name in found if name not in known]:
        raise ConfigurationError(
            f"{path} has the unknown {', '.join(unknown)}; known are {', '.join(known)}; {example}."
        )
    return Facts(**{name: _fact(path, name, value) for name, value in found.items() if value is not None})


def _fact(path: str | os.PathLike[str], name: str, value: Any) -> Any:
    several = isinstance(getattr(Facts(), name), tuple)
    values = value if isinstance(value, list) and several else [value]
    if not all(isinstance(one, str) and one.strip() for one in values):
        expected = "a text, or a list of texts," if several else "a text"
        raise ConfigurationError(
            f"{path}: {name} is {value!r}; {expected} was expected. Quote what YAML reads otherwise."
        )
    return tuple(one.strip() for one in values) if several else value.strip()


def _template(name: str) -> Template:
    # The templates are at the top of the repository; the wheel carries them inside the package.
    for root in (files("arhn_datasets"), Path(__file__).parents[2]):
        template = root / "dataset_cards" / f"{name}.md"
        if template.is_file():
            return Template(template.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"dataset_cards/{name}.md is missing from this installation; reinstall arhn_datasets.")


def _metadata(content: CardContent) -> dict[str, Any]:
    facts, source = content.stated, content.run["source"]
    rows = content.report.total.rows
    loaded = {name: config for name, config in content.configs.items() if name not in FILES}
    sources = [*facts.source_datasets, *([source["name"]] if source["kind"] == "hub" else [])]
    data = {
        "pretty_name": _one_line(_title(content)),
        "license": content.given_license or source.get("license"),
        "language": list(facts.language or source.get("languages") or ()),
        "annotations_creators": ["machine-generated"],
        "task_categories": list(TASK_CATEGORIES),
        "source_datasets": list(dict.fromkeys(sources)),
        "size_categories": [next((name for limit, name in SIZES if rows < limit), "n>1B")],
        "tags": list(dict.fromkeys([*TAGS, *_baseline_tag(content), *facts.tags])),
        "configs": [_config_entry(content, name, config) for name, config in loaded.items()],
        "dataset_info": [_info_entry(content, name, config) for name, config in loaded.items()],
    }
    return {name: value for name, value in data.items() if value}


def _baseline_tag(content: CardContent) -> tuple[str, ...]:
    return (BASELINE_TAG,) if content.run["annotator"].get("baseline") else ()


def _config_entry(content: CardContent, name: str, config: Config) -> dict[str, Any]:
    return {
        "config_name": name,
        "data_files": [{"split": split, "path": path} for split, path in config.splits.items()],
        # `load_dataset` of a folder caches by this entry and not by the files: without something of the run in
        # it, another run in a folder of the same name would be served from the cache.
        "description": f"arhn_datasets run {content.run['id']}",
        **({"default": True} if name == "default" else {}),
    }


def _info_entry(content: CardContent, name: str, config: Config) -> dict[str, Any]:
    entry: dict[str, Any] = {"config_name": name}
    if config.features is not None:
        entry["features"] = config.features._to_yaml_list()  # what push_to_hub of `datasets` writes
    if set(config.sizes) == set(config.splits):
        entry["splits"] = [
            {"name": split, "num_bytes": size, "num_examples": rows} for split, (rows, size) in config.sizes.items()
        ]
        written = content.run.get("files") or {}
        sizes = [size for _, size in config.sizes.values()]
        stored = [
            file["bytes"]
            for path, file in written.items()
            if any(fnmatchcase(path, pattern) for pattern in config.splits.values())
        ]
        entry |= {"download_size": sum(stored or sizes), "dataset_size": sum(sizes)}
    return entry


def _title(content: CardContent) -> str:
    return content.stated.pretty_name or f"{content.run['source']['name']}, refined with ARHN"


def _source_sentence(source: Mapping[str, Any]) -> str:
    return f"Source: {_source_link(source)}{_at_revision(source)}."


def _source_link(source: Mapping[str, Any]) -> str:
    name = _inline(source["name"])
    linked = source["kind"] == "hub" and re.fullmatch(r"[\w./-]+", source["name"])
    return f"[{name}](https://huggingface.co/datasets/{source['name']})" if linked else _value(source["name"])


def _at_revision(source: Mapping[str, Any]) -> str:
    return f" at revision {_value(source['revision'])}" if source.get("revision") else ""


def _summary(report: Report) -> str:
    total = report.total
    return (
        f"of {total.negatives:,} hard negatives in {total.rows:,} rows, {total.relabelled:,} became positives, "
        f"{total.filtered:,} were set aside as ambiguous and {total.kept:,} stayed."
    )


def _ranks_sentence(parameters: Mapping[str, Any]) -> str:
    relabel = parameters["relabel"]
    if "rule" in relabel or relabel.get("evidence", "snippets") != "snippets":
        return "The rule of this run looks at other evidence than snippets and ranks."
    if relabel["policy"] == "filter" and "ranks" not in parameters:
        return "The policy of this run needs no ranking."
    if parameters.get("ranks", {}).get("rank_by") == "passage":
        return "The annotator ordered all passages of a row by how directly each one answers the query."
    return (
        "The annotator ordered the snippets of a row, those of its positives and of its negatives together, by how "
        "directly each one answers the query."
    )


def _policy_sentence(relabel: Mapping[str, Any]) -> str:
    if "rule" in relabel:
        options = ", ".join(f"{name} {_value(value)}" for name, value in relabel.items() if name != "rule")
        return f"The rule was {_value(relabel['rule'])}, over the scores of the passages, with {options}."
    policy = relabel["policy"]
    if relabel.get("evidence", "snippets") != "snippets":
        return f"The policy was {_value(policy)}, by the {_value(relabel['evidence'])} of the passages."
    if policy not in POLICIES:
        return f"The policy was {_value(policy)}."
    said = POLICIES[policy].format(
        reference=f"{'worst' if relabel.get('reference') == 'worst' else 'best'} ranked positive of the source",
        ties=", or level with it," if relabel.get("ties", "above") == "above" else "",
    )
    return said + (UNSUPPORTED.get(relabel.get("unsupported", ""), "") if policy == "relabel+filter" else "")


def _chart(content: CardContent) -> str:
    light, dark = content.charts.get("light"), content.charts.get("dark")
    if not light:
        return ""
    total = content.report.total
    alt = (
        f"Bars by subset: of {total.negatives:,} hard negatives, {total.relabelled:,} relabelled, "
        f"{total.filtered:,} filtered, {total.kept:,} kept; and the share of each status of the evidence."
    )
    # The Hub completes the address of an image, and not that of a source.
    where = f"https://huggingface.co/datasets/{content.repo_id}/resolve/main/" if content.repo_id else ""
    night = f'  <source media="(prefers-color-scheme: dark)" srcset="{where}{_html(dark)}">\n' if dark else ""
    return f'<picture>\n{night}  <img alt="{alt}" src="{_html(light)}" width="720">\n</picture>\n\n'


def _statuses_table(report: Report) -> str:
    total = report.total
    kinds = (
        ("snippets", total.snippets, SNIPPET_STATUSES),
        ("rankings", total.rankings, RANKING_STATUSES),
        ("verdicts", total.verdicts, JUDGEMENT_STATUSES),
        ("grades", total.grades, JUDGEMENT_STATUSES),
        ("rows", total.decisions, DECISION_STATUSES),
    )
    lines = []
    for kind, counts, known in kinds:
        whole = sum(counts.values()) or 1
        for status in dict.fromkeys([*known, *counts]):
            if counts.get(status):
                share, meaning = counts[status] / whole, MEANINGS[kind].get(status, "")
                lines.append((kind, _value(status), f"{counts[status]:,}", f"{share:.1%}", meaning))
    return _table(("evidence", "status", "number", "share", "meaning"), lines, right=(2, 3))


def _changed(rows: Sequence[Row]) -> str:
    return "\n\n".join(_changed_row(row) for row in rows) or "No row was changed."


def _changed_row(row: Row) -> str:
    passages = list(_passages(row))
    lines = [
        (
            _heading(passage),
            before,
            f"**{after}**" if after != before else after,
            "" if rank is None else str(rank),
            _excerpt(passage, snippet),
        )
        for passage, snippet, rank, before, after in passages[:SHOWN_PASSAGES]
    ]
    subset = f" · subset {_value(shorten(str(row[SUBSET]), NAME_CHARACTERS))}" if row.get(SUBSET) is not None else ""
    left = len(passages) - len(lines)
    more = f"; {left:,} more passages of this row are not shown" if left > 0 else ""
    return (
        f"**Query:** {_inline(shorten(row[QUERY], QUERY_CHARACTERS))}{subset}\n\n"
        f"{_table(('passage', 'before', 'after', 'rank', 'text, its snippet marked'), lines, right=(3,))}\n\n"
        f"Negatives that stayed: {len(row[NEGATIVE.passages]):,}{more}."
    )


def _heading(passage: Mapping[str, Any]) -> str:
    docid, title = (shorten(str(passage.get(name) or ""), NAME_CHARACTERS) for name in ("docid", "title"))
    return f"<b>{_escaped(docid)}</b> {_escaped(title)}".strip()


def _passages(row: Row) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], int | None, str, str]]:
    """The positives and the filtered passages of a row, moved ones last, each from its label to its label."""
    lists = (
        ("positive", POSITIVE.passages, POSITIVE.snippets, POSITIVE.ranks, POSITIVE.origins),
        ("filtered", FILTERED.passages, FILTERED.snippets, FILTERED.ranks, FILTERED.origins),
    )
    for after, passages, snippets, ranks, origins in lists:
        places = row.get(ranks) or [None] * len(row[passages])
        held = row.get(snippets) or [{"status": None, "start": None}] * len(row[passages])
        for passage, snippet, rank, origin in zip(row[passages], held, places, row[origins], strict=True):
            yield passage, snippet, rank, origin["label"], after


def _excerpt(passage: Mapping[str, Any], snippet: Mapping[str, Any]) -> str:
    """The snippet, marked, and some words around it; without one the beginning of the passage."""
    if snippet["status"] != GROUNDED or snippet["start"] is None:
        beginning = _inline(shorten(passage.get("text") or "", 2 * AROUND_CHARACTERS))
        return beginning if snippet["status"] is None else f"{beginning} ({_value(snippet['status'])})"
    text, start, end = passage.get(snippet["field"]) or "", snippet["start"], snippet["end"]
    before, after = text[max(0, start - AROUND_CHARACTERS) : start], text[end : end + AROUND_CHARACTERS]
    # Cut between words, as far as there are some.
    if start > AROUND_CHARACTERS:
        before = "… " + re.sub(r"^\S{1,20}\s", "", before)
    if len(text) > end + AROUND_CHARACTERS:
        after = re.sub(r"\s\S{1,20}$", "", after) + " …"
    marked = _escaped(shorten(text[start:end], SNIPPET_CHARACTERS))
    return f"{_escaped(before)}<mark><b>{marked}</b></mark>{_escaped(after)}".strip()


def _load(content: CardContent) -> str:
    repository, dropped = content.repo_id or "PATH_OR_REPO_ID", "dropped" in content.configs
    tuples = [name for name in TUPLES if name in content.configs]
    names = ["datasets", f"revert-{content.layout}"]
    if content.layout == PUBLISHED:
        names = [name for name in names if name != "revert-published" or "evidence" in content.configs]
        names += ["tuples"] if tuples else []
        there = {*content.configs, *_formats(content)}
        names += [name for name, needed in TRAINERS.items() if there.issuperset(needed)]
    values = {
        "repository": repository,
        "split": next(iter(content.configs["default"].splits)),
        "tuples": "\n".join(f"- `{name}`: {TUPLES[name]}" for name in tuples),
        "tuple": tuples[0] if tuples else "",
        "dropped": _dropped_sentence(content, repository) if dropped else "",
        **{
            f"{name}_split": next(iter(content.configs[name].splits)) if name in content.configs else ""
            for name in ("corpus", "queries", "qrels")
        },
    }
    shown = [_template(f"sections/load-{name}").substitute(values).strip("\n") for name in [*names, "verify"]]
    return "\n\n".join(shown) + "\n"


def _dropped_sentence(content: CardContent, repository: str) -> str:
    joined = " Concatenate them to `ds` before `with_evidence` joins them." if content.layout == PUBLISHED else ""
    return f'\nRows that a guard left out: `load_dataset("{repository}", "dropped")`.{joined}\n'


def _formats(content: CardContent) -> tuple[str, ...]:
    return tuple((content.run.get("published") or {}).get("formats") or ())


def _configurations(content: CardContent) -> str:
    options = (content.run.get("published") or {}).get("options") or {}
    lines = [
        (
            _value(name),
            CONFIGURATIONS.get(name, "") + _told(name, options),
            ", ".join(f"{_inline(split)}&nbsp;{rows:,}" for split, (rows, _) in config.sizes.items()),
        )
        for name, config in content.configs.items()
        if name not in FILES
    ]
    table = _table(("configuration", "content", "rows"), lines, right=(2,))
    there = [f"- {FILES[name]}" for name in FILES if name in content.configs or name in _formats(content)]
    return "\n".join([table, "", "Files beside them:", "", *there] if there else [table])


def _told(name: str, options: Mapping[str, Any]) -> str:
    """What the options of an export mean for a configuration."""
    if name == "labeled-list" and options.get("labels") == "soft":
        return ": its label is the score of the passage"
    if name == "labeled-list" and "grades" in options:
        return ": 2 is a positive, 1 a filtered passage, 0 a negative" if options["grades"] else ": 1 is a positive"
    if name == "n-tuple" and "negatives" in options:
        short = "is left out" if options.get("short") == "drop" else "repeats its own"
        return f" up to `negative_{options['negatives']}`; a row with fewer negatives {short}"
    return ""


def _annotator_sentence(annotator: Mapping[str, Any]) -> str:
    if annotator.get("baseline"):
        return f"The annotator was a **{_inline(annotator['annotator'])}**, not an LLM."
    model = _value(annotator["model"]) if annotator.get("model") else _inline(annotator["annotator"])
    revision = f" at revision {_value(annotator['revision'])}" if annotator.get("revision") else ""
    version = f" {_inline(annotator['server_version'])}" if annotator.get("server_version") else ""
    server = f", served by {_inline(annotator['server'])}{version}" if annotator.get("server") else ""
    return f"The annotator was {model}{revision}{server}."


def _facts_table(name: str, values: Mapping[str, Any]) -> str:
    return _table(
        (name, ""), [(_inline(key), _value(value)) for key, value in values.items() if value is not None], right=()
    )


def _parameters_table(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        (_inline(stage), _inline(name), _value(value))
        for stage, values in parameters.items()
        for name, value in values.items()
        if value is not None
    ]
    return _table(("stage", "parameter", "value"), lines, right=())


def _prompts(prompts: Mapping[str, Mapping[str, Any]]) -> str:
    """The texts, folded, and their hashes."""
    if not prompts:
        return ""
    hashes = [
        (_inline(task), _value(text.get("version", "")), _value(text.get("hash", ""))) for task, text in prompts.items()
    ]
    folded = [
        f"<details>\n<summary>Prompts of the task {_inline(task)}</summary>\n\n"
        + "\n\n".join(
            f"{title}:\n\n{_fenced(text[name], 'text')}"
            for name, title in (("snippet", "Snippets"), ("ranking", "Ranks"))
            if text.get(name)
        )
        + "\n\n</details>"
        for task, text in prompts.items()
    ]
    table = _table(("task", "version", "hash of the prompts"), hashes, right=())
    return "\n\n".join(["**Prompts**", table, *folded]) + "\n\n"


def _limits(content: CardContent) -> str:
    annotator, audit, total = content.run["annotator"], content.run.get("audit"), content.report.total
    if annotator.get("baseline"):
        nature = (
            "**The annotator is a lexical baseline.** It knows words and no meaning: these labels show how the tools "
            "work, and are no training data."
        )
    else:
        nature = (
            "The annotator is a language model and no human read each label. It misses answers, and takes passages "
            "for answers that are not. The paper reports a human-LLM agreement of kappa 0.373 for its own annotator."
        )
    failed = f"{total.errors:,} requests had no reply; their passages stayed where they were." if total.errors else ""
    limits = [
        nature,
        audit_sentence(audit),
        "Only the passages of the source were looked at: an answer that was never mined is still missing, and a "
        "passage that the source labels positive is positive here whether or not an answer was found in it.",
        failed,
    ]
    listed = "\n".join(f"- {limit}" for limit in limits if limit)
    return f"{listed}\n\n{content.stated.limitations}" if content.stated.limitations else listed


def audit_sentence(audit: Mapping[str, Any] | None) -> str:
    """What a card says of the human audit that a run has recorded, on one line."""
    if not audit:
        return "No human audit of these labels was made."
    said = f"A human audit of {audit['rows']:,} rows"
    if audit.get("kappa") is None:
        return f"{said} was made; all answers and all labels in it are the same, so that kappa is not defined."
    known = None not in (audit.get("low"), audit.get("high"))
    interval = f" (interval {audit['low']:.3f} to {audit['high']:.3f})" if known else ""
    answering = audit.get("answering") or {}
    shares = [
        f"{share['value']:.0%} of the {name} (interval {share['low']:.0%} to {share['high']:.0%})"
        for name, share in answering.items()
        if None not in (share.get("value"), share.get("low"), share.get("high"))
    ]
    estimated = f" By it these passages answer their query: {', '.join(shares)}." if shares else ""
    return f"{said} agrees with the annotator with kappa {audit['kappa']:.3f}{interval}.{estimated}"


def _source_bullets(content: CardContent) -> str:
    source, facts = content.run["source"], content.stated
    bullets = [f"Source: {_source_link(source)}{_at_revision(source)}"]
    if source.get("config"):
        bullets.append(f"Configuration: {_value(source['config'])}")
    if source.get("rows"):
        bullets.append("Rows: " + ", ".join(f"{rows:,} in {_value(split)}" for split, rows in source["rows"].items()))
    if source.get("limit"):
        bullets.append(f"Only the first {source['limit']:,} rows of each split were read.")
    if facts.homepage:
        bullets.append(
            f"Homepage: <{_html(facts.homepage)}>"
            if _is_url(facts.homepage)
            else f"Homepage: {_inline(facts.homepage)}"
        )
    bullets.append(f"Licence: {_license_sentence(content)}")
    if source.get("gated"):
        bullets.append("The source is gated: its terms, which are accepted there, hold for what is here.")
    return "\n".join(f"- {bullet}" for bullet in bullets)


def _license_sentence(content: CardContent) -> str:
    given, inherited = content.given_license, content.run["source"].get("license")
    if given and inherited and given != inherited:
        return f"{_value(given)}, stated by the publisher of this dataset; the source is under {_value(inherited)}."
    if given and not inherited:
        return f"{_value(given)}, stated by the publisher of this dataset; the source names none."
    if given or inherited:
        return f"{_value(given or inherited)}, as the source."
    return "the source names none; ask its publisher before you share this."


def _is_url(text: str) -> bool:
    return re.fullmatch(r"https?://[^\s<>\"]+", text) is not None


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """A Markdown table; numbers stand to the right, by default in all columns but the first."""
    aligned = range(1, len(header)) if right is None else right
    rule = "|".join("---:" if at in aligned else "---" for at in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _fenced(text: str, language: str) -> str:
    """Text as a code block that nothing in it can end."""
    shown = _visible(text.strip("\n"))
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_inline(name)}: {_value(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f"`{text}`" if re.fullmatch(r"[\w.,+@/:()=-]+(?: [\w.,+@/:()=-]+)*", text, re.ASCII) else _inline(text)


def _inline(value: Any) -> str:
    """A value that cannot leave its place in a line of Markdown: one line, no markup, no table bars."""
    return _escaped(str(value)).strip() or "(empty)"


def _escaped(text: str) -> str:
    # An underscore between letters is none of Markdown's marks.
    return re.sub(
        r"[&<>`|\[\]*$~\\]|(?<![^\W_])_|_(?![^\W_])",
        lambda found: f"&#{ord(found.group())};",
        re.sub(r"\s+", " ", _visible(text)),
    )


def _html(value: Any) -> str:
    return re.sub(r"[&<>\"'\s]", lambda found: f"&#{ord(found.group())};", _visible(str(value)))


def _one_line(value: Any) -> str:
    return " ".join(_visible(str(value)).split())


def _visible(text: str) -> str:
    """``text`` without what a file cannot hold or what would turn the direction of the rest of the page."""
    turned = re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)
    return re.sub("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", turned)


def _split(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a README, and the text behind them as it is."""
    found = re.match(r"\ufeff?\s*?---[ \t]*\r?\n(?:(.*?)\r?\n)?---[ \t]*(?:\r?\n|\Z)", text, re.DOTALL)
    if found is None:
        return {}, text
    try:
        metadata = _read_yaml(f"{found.group(1) or ''}\n")
    except ValueError as error:
        raise InputError(
            f"The metadata at the top of the existing README.md are no YAML: {_one_line(error)[:300]}. Nothing was "
            "changed: correct them there, or remove them, and run this again."
        ) from error
    if metadata is None:
        metadata = {}
    # Two rules with text between them are no metadata.
    return (metadata, text[found.end() :]) if isinstance(metadata, dict) else ({}, text)


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any], license_given: bool) -> dict[str, Any]:
    merged, before_theirs = dict(theirs), {*OWN_KEYS, *(["license"] if license_given else [])}
    for name, value in ours.items():
        if name in before_theirs or not theirs.get(name):
            merged[name] = value
        elif isinstance(value, list):
            there = theirs[name] if isinstance(theirs[name], list) else [theirs[name]]
            # Ours as it is now: a tag of an earlier run may be wrong of this one.
            merged[name] = [*value, *(one for one in there if one not in value and one != BASELINE_TAG)]
    # What an earlier run has said of its files, and this one does not say.
    return {name: value for name, value in merged.items() if name not in OWN_KEYS or name in ours}


def _read_yaml(text: str) -> Any:
    """The value of a YAML text as YAML 1.2 reads it, which the Hub does: ``no`` is a language, not false.

    Raises:
        ValueError: it is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error


def _dump(metadata: Mapping[str, Any]) -> str:
    import yaml
    from huggingface_hub.utils import yaml_dump

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        # Unquoted or in single quotes, the line ends of Unicode would be read back as spaces.
        style = '"' if any(end in value for end in "\x85\u2028\u2029") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml_dump(dict(metadata), sort_keys=False, width=float("inf"), Dumper=Dumper))
