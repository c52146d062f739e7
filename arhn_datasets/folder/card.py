"""The dataset card: what was done to a dataset, with what result, and how to load it.

All of its prose stands in ``dataset_cards/``; here it is chosen and filled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from arhn_datasets.folder.readme import PUBLISHED, CardContent, rendered, stated_metadata
from arhn_datasets.folder.report import COUNT_NAMES, Report, passages_to_show
from arhn_datasets.rows.records import (
    EVIDENCE_KINDS,
    GROUNDED,
    KINDS,
    NEGATIVE,
    QUERY,
    RANKING,
    SUBSET,
    Passage,
    Row,
    shorten,
)
from arhn_datasets.rules.rule import known_rules

CHANGED_ROWS = 5  # that the card shows
NAME_CHARACTERS, QUERY_CHARACTERS, SNIPPET_CHARACTERS, AROUND_CHARACTERS = 100, 300, 320, 90
SHOWN_PASSAGES = 8

_SENTENCE = re.compile(r"^- `([^`]+)`: (.*(?:\n  .*)*)", re.MULTILINE)


def render_card(content: CardContent) -> str:
    """The README.md of a dataset: metadata, and a page in a marked block that another card can replace."""
    run, facts = content.run, content.facts
    annotator, parameters = run["annotator"], run["parameters"]
    published = content.layout == PUBLISHED
    asked = [(inline(name), value_of(one)) for name, one in annotator.items() if name != "baseline" and one is not None]
    given = [
        (inline(stage), inline(name), value_of(value))
        for stage, values in parameters.items()
        for name, value in values.items()
        if value is not None
    ]
    kinds, other = _evidence_of(parameters), _other(parameters["relabel"])
    title = facts.pretty_name or said("top", f"title{other}", source=run["source"]["name"])
    page = filled(
        "card",
        title=inline(title),
        warning=f"{filled('sections/baseline')}\n\n" if annotator.get("baseline") else "",
        description=f"{facts.description.strip()}\n\n" if facts.description else "",
        source_sentence=f"{said('source', 'source', source=_source_link(run['source']))}.",
        version=inline(run["versions"]["arhn_datasets"]),
        summary=said("top", _with_dropped("summary", content.report), **_totals(content.report)),
        method=said("top", f"method{other}", rule=value_of(parameters["relabel"].get("rule", "Relabel"))),
        idea=said("top", f"idea{other}"),
        steps=_steps(kinds, parameters),
        chart=_chart(content),
        counts=counts_table(content.report),
        dropped=f" {said('top', 'dropped')}" if content.report.total.dropped else "",
        statuses=_statuses_table(content.report),
        changed="\n\n".join(_changed_row(row, kinds) for row in content.changed) or said("changed", "none"),
        load=_load(content),
        columns_title="Configurations" if published else "Columns",
        columns_anchor="configurations" if published else "columns",
        columns=f"{_columns(content, kinds)}\n",
        annotator_sentence=_annotator(annotator),
        annotator=table(("annotator", ""), asked, right=()),
        parameters=table(("stage", "parameter", "value"), given, right=()),
        prompts=_prompts(run.get("prompts") or {}),
        limits=_limits(content, kinds),
        source_bullets=_source_bullets(content),
        citation=f"\n{fenced(facts.citation, 'bibtex')}\n" if facts.citation else "",
    )
    return rendered(stated_metadata(content, " ".join(_visible(title).split())), page)


def counts_table(report: Report) -> str:
    """The counts by subset as a Markdown table, from the source to the result."""
    lines = []
    for name, counts in report.rows():
        shown = {column: f"{getattr(counts, column):,}" for column in report.names}
        shown["positives"] += f" → {counts.positives + counts.relabelled:,}"
        shown["negatives"] += f" → {counts.kept:,}"
        lines.append((inline(shorten(name, NAME_CHARACTERS)), *shown.values()))
    return table(("subset", *report.names), lines)


def audit_sentence(audit: Mapping[str, Any] | None) -> str:
    """What a card says of the human audit that a run has recorded, on one line."""
    if not audit:
        return said("audit", "none")
    rows = f"{audit['rows']:,}"
    if audit.get("kappa") is None:
        return said("audit", "one-label", rows=rows)
    interval = ""
    if None not in (audit.get("low"), audit.get("high")):
        interval = " " + said("audit", "interval", low=f"{audit['low']:.3f}", high=f"{audit['high']:.3f}")
    shares = [
        said(
            "audit", "share", name=name, share=f"{one['value']:.0%}", low=f"{one['low']:.0%}", high=f"{one['high']:.0%}"
        )
        for name, one in (audit.get("answering") or {}).items()
        if None not in (one.get("value"), one.get("low"), one.get("high"))
    ]
    agreement = said("audit", "kappa", rows=rows, kappa=f"{audit['kappa']:.3f}", interval=interval)
    return f"{agreement} {said('audit', 'answering', shares=', '.join(shares))}" if shares else agreement


def _with_dropped(key: str, report: Report) -> str:
    return f"{key}-dropped" if report.total.dropped else key


def _totals(report: Report) -> dict[str, str]:
    return {name: f"{getattr(report.total, name):,}" for name in COUNT_NAMES}


def _source_link(source: Mapping[str, Any]) -> str:
    """The name of the source, linked where it is on the Hub, and its revision."""
    name = value_of(source["name"])
    if source["kind"] == "hub" and re.fullmatch(r"[\w./-]+", source["name"]):
        name = f"[{inline(source['name'])}](https://huggingface.co/datasets/{source['name']})"
    return f"{name}{_optional('source', 'revision', source)}"


def _optional(name: str, key: str, values: Mapping[str, Any]) -> str:
    """A sentence on a value that may be missing, behind a space."""
    return f" {said(name, key, **{key: value_of(values[key])})}" if values.get(key) else ""


def _evidence_of(parameters: Mapping[str, Any]) -> list[str]:
    """The kinds of evidence of a run, in the order of its stages; with snippets go ranks, asked for or not."""
    kinds = [kind for kind in parameters if kind in EVIDENCE_KINDS]
    if not kinds and "rule" not in parameters["relabel"]:  # the rows of a map, whose stages nobody has named
        kinds = [parameters["relabel"].get("evidence", "snippets")]
    if "snippets" in kinds and "ranks" not in kinds:
        kinds.insert(kinds.index("snippets") + 1, "ranks")
    return kinds


def _other(relabel: Mapping[str, Any]) -> str:
    """The end of the names of sentences where the rule is not that of ARHN over snippets."""
    return "" if "rule" not in relabel and relabel.get("evidence", "snippets") == "snippets" else "-other"


def _steps(kinds: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """What was done, in order."""
    ranked = "none" if "ranks" not in parameters and parameters["relabel"].get("policy") == "filter" else "snippet"
    if parameters.get("ranks", {}).get("rank_by") == "passage":
        ranked = "passage"
    known, ranks = sentences("sentences/evidence"), said("ranks", ranked)
    steps = [said("evidence", k if k in known else "other", ranks=ranks, kind=inline(k).capitalize()) for k in kinds]
    steps.append(f"**Relabelling.** {_policy(parameters['relabel'])}")
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _columns(content: CardContent, kinds: Sequence[str]) -> str:
    known, ranking = sentences("sentences/columns"), RANKING if "ranks" in kinds else None
    lines = [f"| `*_{kind}` | {known.get(kind, known['other'])} |" for kind in kinds]
    lines += [f"| `{ranking}` | {known[ranking]} |"] if ranking else []
    values = {"evidence": "\n".join(lines), "configurations": _configurations(content)}
    return filled(f"sections/columns-{content.layout}", **values)


def _policy(relabel: Mapping[str, Any]) -> str:
    """What moved a passage: a rule or a policy, by the page of its name."""
    if "rule" in relabel:
        page = f"rules/{relabel['rule']}"
        options = ", ".join(
            f"{name} {value_of(value)}" for name, value in relabel.items() if name != "rule" and value is not None
        )
        return filled(page if is_there(page) else "rules/other", rule=value_of(relabel["rule"]), options=options)
    policy, evidence = relabel["policy"], relabel.get("evidence", "snippets")
    if evidence != "snippets":
        known = sentences("sentences/policy")
        if f"above-{evidence}" not in known or f"{policy}-by" not in known:
            return said("policy", "other-evidence", policy=value_of(policy), evidence=value_of(evidence))
        which = "best" if relabel.get("reference") == "best" else "worst"
        values = {"threshold": value_of(relabel.get("threshold")), "which": which}
        above, below = (said("policy", f"{place}-{evidence}", **values) for place in ("above", "below"))
        return said("policy", f"{policy}-by", above=above, below=below)
    if not is_there(f"policies/{policy}"):
        return said("policy", "other", policy=value_of(policy))
    ties = "above" if relabel.get("ties", "above") == "above" else "below"
    reference = said("policy", ties, which="worst" if relabel.get("reference") == "worst" else "best")
    unsupported = sentences("sentences/policy").get(f"unsupported-{relabel.get('unsupported')}")
    return filled(
        f"policies/{policy}", reference=reference, unsupported=f" {unsupported}" if unsupported is not None else ""
    )


def _chart(content: CardContent) -> str:
    light, dark = content.charts.get("light"), content.charts.get("dark")
    if not light:
        return ""
    alt = said("top", _with_dropped("chart", content.report), **_totals(content.report))
    # The Hub completes the address of an image, and not that of a source.
    where = f"https://huggingface.co/datasets/{content.repo_id}/resolve/main/" if content.repo_id else ""
    night = f'  <source media="(prefers-color-scheme: dark)" srcset="{where}{_html(dark)}">\n' if dark else ""
    return f'<picture>\n{night}  <img alt="{alt}" src="{_html(light)}" width="720">\n</picture>\n\n'


def _statuses_table(report: Report) -> str:
    lines = []
    for kind, counts, known in report.total.statuses():
        whole, meanings = sum(counts.values()) or 1, _meanings(kind)
        for status in dict.fromkeys([*known, *counts]):
            if counts.get(status):
                share = f"{counts[status] / whole:.1%}"
                lines.append((kind, value_of(status), f"{counts[status]:,}", share, meanings.get(status, "")))
    return table(("evidence", "status", "number", "share", "meaning"), lines, right=(2, 3))


def _meanings(kind: str) -> dict[str, str]:
    """What the statuses of a kind mean, where a page says it."""
    return sentences(f"statuses/{kind}") if is_there(f"statuses/{kind}") else {}


def _changed_row(row: Row, kinds: Sequence[str]) -> str:
    passages = list(passages_to_show(row))
    lines, others = [], [kind for kind in kinds if kind != "snippets"]  # the snippet stands in the text
    for side, passage, given, before in passages[:SHOWN_PASSAGES]:
        docid, title = (shorten(str(passage.get(name) or ""), NAME_CHARACTERS) for name in ("docid", "title"))
        after = side.label if side.label == before else f"**{side.label}**"
        heading = f"<b>{escaped(docid)}</b> {escaped(title)}".strip()
        said_of = (inline(given[kind]) if kind in given else "" for kind in others)
        lines.append((heading, before, after, *said_of, _excerpt(passage, given.get("snippets"))))
    subset, left = row.get(SUBSET), len(passages) - len(lines)
    names = [next(iter(KINDS[kind].shown_as)) for kind in others]
    excerpt = said("changed", "excerpt-snippets" if len(others) < len(kinds) else "excerpt")
    shown = "" if subset is None else said("changed", "subset", subset=value_of(shorten(str(subset), NAME_CHARACTERS)))
    return filled(
        "sections/changed-row",
        query=inline(shorten(row[QUERY], QUERY_CHARACTERS)),
        subset=f" {shown}" if shown else "",
        passages=table(("passage", "before", "after", *names, excerpt), lines, right=range(3, 3 + len(names))),
        kept=f"{len(row[NEGATIVE.passages]):,}",
        more=said("changed", "more", number=f"{left:,}") if left > 0 else "",
    )


def _excerpt(passage: Passage, snippet: Mapping[str, Any] | None) -> str:
    """The snippet, marked, and some words around it; without one the beginning of the passage."""
    status = snippet["status"] if snippet is not None else None
    if snippet is None or status != GROUNDED or snippet["start"] is None:
        beginning = inline(shorten(passage.get("text") or "", 2 * AROUND_CHARACTERS))
        return beginning if status is None else f"{beginning} ({value_of(status)})"
    text, start, end = passage.get(snippet["field"]) or "", snippet["start"], snippet["end"]
    before, after = text[max(0, start - AROUND_CHARACTERS) : start], text[end : end + AROUND_CHARACTERS]
    # Cut between words, as far as there are some.
    if start > AROUND_CHARACTERS:
        before = "… " + re.sub(r"^\S{1,20}\s", "", before)
    if len(text) > end + AROUND_CHARACTERS:
        after = re.sub(r"\s\S{1,20}$", "", after) + " …"
    marked = escaped(shorten(text[start:end], SNIPPET_CHARACTERS))
    return f"{escaped(before)}<mark><b>{marked}</b></mark>{escaped(after)}".strip()


def _load(content: CardContent) -> str:
    repository, configs = content.repo_id or "PATH_OR_REPO_ID", content.configs
    published = content.layout == PUBLISHED
    splits = {f"{name}_split": next(iter(config.splits)) for name, config in configs.items()}
    values = {**splits, "repository": repository, "split": splits["default_split"], "dropped": ""}
    values["again"] = _again(content.run["parameters"]["relabel"])
    if "dropped" in configs:
        joined = f" {said('load', 'joined')}" if published else ""
        values["dropped"] = f"\n{said('load', 'dropped', repository=repository)}{joined}\n"
    shown = [filled("sections/load-datasets", **values)]
    if not published or "evidence" in configs:
        shown.append(filled(f"sections/load-revert-{content.layout}", **values))
    for page, formats in content.examples.items():
        listed = "\n".join(f"- `{name}`: {row}" for name, row in formats.items())
        shown.append(filled(f"formats/{page}", **values, formats=listed, format=next(iter(formats))))
    return "\n\n".join([*shown, filled("sections/load-verify", **values)]) + "\n"


def _again(relabel: Mapping[str, Any]) -> str:
    """The code of a rule over the same evidence."""
    if "rule" in relabel:
        return f"arhn.{relabel['rule']}()" if relabel["rule"] in known_rules() else "the_rule"
    evidence = relabel.get("evidence", "snippets")
    by = "" if evidence == "snippets" else f"evidence={json.dumps(evidence)}, "
    return f'arhn.relabel.with_options({by}policy="filter")'


def _configurations(content: CardContent) -> str:
    known = sentences("configurations")
    lines = [
        (
            value_of(name),
            config.content or known.get(name, ""),
            ", ".join(f"{inline(split)}&nbsp;{rows:,}" for split, (rows, _) in config.sizes.items()),
        )
        for name, config in content.configs.items()
    ]
    shown = table(("configuration", "content", "rows"), lines, right=(2,))
    return "\n".join(
        [shown, "", said("load", "files"), "", *(f"- {one}" for one in content.files)] if content.files else [shown]
    )


def _annotator(annotator: Mapping[str, Any]) -> str:
    name, server = inline(annotator["annotator"]), annotator.get("server")
    if annotator.get("baseline"):
        return said("annotator", "baseline", annotator=name)
    version = f" {inline(annotator['server_version'])}" if annotator.get("server_version") else ""
    return said(
        "annotator",
        "model",
        model=value_of(annotator["model"]) if annotator.get("model") else name,
        revision=_optional("annotator", "revision", annotator),
        server=said("annotator", "server", server=f"{inline(server)}{version}") if server else "",
    )


def _prompts(prompts: Mapping[str, Mapping[str, Any]]) -> str:
    """The texts, folded, and their hashes."""
    if not prompts:
        return ""
    hashes = [
        (inline(task), value_of(text.get("version", "")), value_of(text.get("hash", "")))
        for task, text in prompts.items()
    ]
    folded = []
    for task, text in prompts.items():
        named = {name: prompt for name, prompt in text.items() if name not in ("version", "hash")}
        texts = "\n\n".join(
            f"{inline(name).capitalize()}:\n\n{fenced(prompt, 'text')}" for name, prompt in named.items()
        )
        folded.append(filled("sections/prompts", task=inline(task), texts=texts))
    shown = table(("task", "version", "hash of the prompts"), hashes, right=())
    return "\n\n".join(["**Prompts**", shown, *folded]) + "\n\n"


def _limits(content: CardContent, kinds: Sequence[str]) -> str:
    errors = content.report.total.errors
    own = next((kind for kind in kinds if [kind] == list(kinds) and kind in sentences("sentences/limits")), "model")
    limits = [
        said("limits", "baseline" if content.run["annotator"].get("baseline") else own),
        audit_sentence(content.run.get("audit")),
        said("limits", "source"),
        *([said("limits", "errors", number=f"{errors:,}")] if errors else []),
    ]
    listed = "\n".join(f"- {limit}" for limit in limits)
    return f"{listed}\n\n{content.facts.limitations}" if content.facts.limitations else listed


def _source_bullets(content: CardContent) -> str:
    source, homepage = content.run["source"], content.facts.homepage or ""
    web = re.fullmatch(r"https?://[^\s<>\"]+", homepage)
    given, inherited = content.given_license, source.get("license")
    licence = "none"
    if given and given != inherited:
        licence = "other" if inherited else "given"
    elif inherited:
        licence = "inherited"
    values = {
        "source": _source_link(source),
        "config": value_of(source.get("config") or ""),
        "rows": ", ".join(
            said("source", "split", rows=f"{rows:,}", split=value_of(split))
            for split, rows in (source.get("rows") or {}).items()
        ),
        "bad_rows": f"{sum((source.get('bad_rows') or {}).values()):,}",
        "limit": f"{source.get('limit') or 0:,}",
        "homepage": f"<{_html(homepage)}>" if web else inline(homepage),
        "licence": said("licence", licence, given=value_of(given), inherited=value_of(inherited)),
    }
    there = {"source": True, **{name: source.get(name) for name in ("config", "rows", "bad_rows", "limit")}}
    there |= {"homepage": homepage, "licence": True, "gated": source.get("gated")}
    return "\n".join(f"- {said('source', name, **values)}" for name, one in there.items() if one)


# -- values in Markdown: whatever they hold, they are shown and not obeyed ---------------------------------------------


def table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """A Markdown table; numbers stand to the right, by default in all columns but the first."""
    aligned = range(1, len(header)) if right is None else right
    rule = "|".join("---:" if at in aligned else "---" for at in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def fenced(text: str, language: str) -> str:
    """Text as a code block that nothing in it can end."""
    shown = _visible(text.strip("\n"))
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def value_of(value: Any) -> str:
    """A value of JSON, as code where it looks like code."""
    if isinstance(value, Mapping):
        return ", ".join(f"{inline(name)}: {value_of(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_of(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f"`{text}`" if re.fullmatch(r"[\w.,+@/:()=-]+(?: [\w.,+@/:()=-]+)*", text, re.ASCII) else inline(text)


def inline(value: Any) -> str:
    """A value that cannot leave its place in a line of Markdown: one line, no markup, no table bars."""
    return escaped(str(value)).strip() or "(empty)"


def escaped(text: str) -> str:
    """The same with the spaces around it."""
    # An underscore between letters is none of Markdown's marks.
    return re.sub(
        r"[&<>`|\[\]*$~\\]|(?<![^\W_])_|_(?![^\W_])",
        lambda found: f"&#{ord(found.group())};",
        re.sub(r"\s+", " ", _visible(text)),
    )


def _html(value: Any) -> str:
    """A value in quotes of HTML."""
    return re.sub(r"[&<>\"'\s]", lambda found: f"&#{ord(found.group())};", _visible(str(value)))


def _visible(text: str) -> str:
    """``text`` without what a file cannot hold or what would turn the direction of the rest of the page."""
    turned = re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)
    return re.sub("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", turned)


# -- the prose in dataset_cards: pages with places for values, and lists of sentences ----------------------------------


def filled(name: str, /, **values: str) -> str:
    """A page with values in their places, without the line end of the file."""
    return Template(_text(name)).substitute(values).strip("\n")


def sentences(name: str) -> dict[str, str]:
    """The sentences of a list by their names: lines ``- `name`: sentence``, which go on where they are indented."""
    return {key: said.replace("\n  ", " ") for key, said in _SENTENCE.findall(_text(name))}


def said(name: str, key: str, /, **values: str) -> str:
    """A sentence of a list, with values in their places."""
    return Template(sentences(f"sentences/{name}")[key]).substitute(values)


def is_there(name: str) -> bool:
    """Whether there is a page of this name, which may come from outside."""
    folder, _, own = name.partition("/")
    return any(f"{own}.md" in {file.name for file in (root / folder).iterdir()} for root in _roots())


def _text(name: str) -> str:
    for root in _roots():
        if (root / f"{name}.md").is_file():
            return (root / f"{name}.md").read_text(encoding="utf-8")
    raise FileNotFoundError(f"dataset_cards/{name}.md is missing from this installation; reinstall arhn_datasets.")


def _roots() -> list[Path]:
    # The templates are at the top of the repository; the wheel carries them inside the package.
    roots = (Path(str(files("arhn_datasets"))), Path(__file__).parents[2])
    return [root / "dataset_cards" for root in roots if (root / "dataset_cards").is_dir()]
