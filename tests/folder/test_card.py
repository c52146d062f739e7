"""The card: valid YAML, a page that no value can break, the facts of the run, and code that runs as it stands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Value, load_dataset, load_dataset_builder
from hypothesis import example, given, settings
from hypothesis import strategies as st

import arhn_datasets as arhn
from arhn_datasets.errors import ConfigurationError, InputError
from arhn_datasets.folder import card
from arhn_datasets.folder.card import counts_table, render_card
from arhn_datasets.folder.evidence_table import canonical_of, evidence_of
from arhn_datasets.folder.readme import BEGIN, END, CardContent, Config, Facts, load_facts, merge_card, parsed
from arhn_datasets.folder.report import Counts, Report, changed_rows
from arhn_datasets.formats.format import Options, examples_of, known_formats, table_named, table_of
from tests.conftest import build_report, snippet, tables_of

CONFIGS = {
    "default": Config(folder="data", sizes={"train": (3, 300)}),
    "dropped": Config(folder="dropped", sizes={"train": (1, 100)}),
}
COUNTS = Counts(
    rows=3,
    positives=3,
    negatives=9,
    relabelled=2,
    filtered=1,
    kept=6,
    snippets={"grounded": 9, "no_answer": 3},
    rankings={"ranked": 3},
    decisions={"changed": 3},
)
LLM = {
    "annotator": "LLM behind an endpoint",
    "baseline": False,
    "model": "some/model",
    "revision": "abc123",
    "server": "text-generation-inference",
    "server_version": "3.3.4",
}
EVIL = [
    "---\n",
    "a\n---\nlicense: evil\n---\n",
    "a | b",
    "<script>alert(1)</script>",
    "</details></table> <img src=x>",
    END,
    f"<!--{BEGIN}",
    "{{ config }}{% raw %}",
    "${policy} $title $$",
    "```\n# heading\n````",
    "\u202eright to left\u2066",
    "עברית العربية",
    "\x00\x07\x1b[31m",
    "\\| \\` \\",
    "- a\n- b\n# c\n| d | e |",
    "*a* _b_ [c](d) ![e](f) https://g.h",
    "&lt;b&gt; &amp;",
    "\r\n\u2028\u2029\x85",
    "\ud800",
    " ",
    "",
]


def run(name="rows.jsonl", kind="file", annotator=None, **source):
    """The content of a run.json."""
    return {
        "id": "0123abcd",
        "versions": {"arhn_datasets": "9.9"},
        "source": {"name": name, "kind": kind, "revision": "c0ffee" if kind == "hub" else None, **source},
        "annotator": annotator or {"annotator": "lexical baseline", "baseline": True},
        "parameters": {"relabel": {"policy": "relabel+filter", "max_relabelled": None}, "ranks": {"window": 20}},
    }


def report(**subsets):
    """A report of equal subsets."""
    return Report(total=COUNTS, subsets=subsets or {"qa": COUNTS})


def content(run_=None, **values):
    """What a card of a small run says."""
    values = {"run": run_ or run(), "report": report(), "configs": CONFIGS, "layout": "refined", **values}
    return CardContent(**values)


def rendered(*args, **values):
    """The YAML and the body of a card."""
    return parts(render_card(content(*args, **values)))


def parts(text):
    """The YAML and the body of a README, read as the Hub reads it."""
    found = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", text)
    return yaml.safe_load(found.group(2)), text[found.end() :]


def refined(rows, **options):
    """The rows after all stages with the lexical baseline."""
    dataset = Dataset.from_list(rows)
    for stage in (
        arhn.Snippets(annotator=arhn.Lexical()),
        arhn.Ranks(annotator=arhn.Lexical()),
        arhn.Relabel(**options),
    ):
        dataset = dataset.map(stage)
    return dataset


def test_the_metadata_is_what_the_hub_reads():
    """Configurations with their files, task categories, tags and size; no licence or language is invented."""
    metadata, body = rendered()
    assert metadata["configs"][0] == {
        "config_name": "default",
        "data_files": [{"split": "train", "path": "data/train-*"}],
        "description": "arhn_datasets run 0123abcd",
        "default": True,
    }
    assert metadata["configs"][1]["config_name"] == "dropped"
    assert metadata["annotations_creators"] == ["machine-generated"]
    assert set(metadata["task_categories"]) == {"text-retrieval", "text-ranking", "sentence-similarity"}
    assert {"arhn", "sentence-transformers", "lexical-baseline"} <= set(metadata["tags"])
    assert metadata["size_categories"] == ["n<1K"]
    assert not {"license", "language", "source_datasets"} & set(metadata)
    assert 'Rows that a guard left out: `load_dataset("PATH_OR_REPO_ID", "dropped")`.\n' in body
    assert "Concatenate them to `ds`" in rendered(layout="published")[1]


def test_a_hub_source_is_linked_at_its_revision():
    """The source dataset, its licence and languages stand in YAML and page; an LLM's labels carry no warning."""
    metadata, body = rendered(run("user/rows", "hub", LLM, license="cc-by-4.0", languages=["en", "de"]))
    assert metadata["source_datasets"] == ["user/rows"]
    assert (metadata["license"], metadata["language"]) == ("cc-by-4.0", ["en", "de"])
    assert "lexical-baseline" not in metadata["tags"]
    assert "[user/rows](https://huggingface.co/datasets/user/rows) at revision `c0ffee`" in body
    assert "Licence: `cc-by-4.0`, as the source." in body
    assert "baseline" not in body
    assert "The annotator was `some/model` at revision `abc123`, served by text-generation-inference 3.3.4." in body


def test_a_baseline_is_flagged_in_bold_at_the_top():
    """Nobody takes the lexical baseline for an LLM."""
    _, body = rendered()
    assert body.index("> **The annotator was a lexical baseline, not an LLM.**") < body.index("## ")
    assert "no training data" in body


def test_counts_by_subset_go_from_the_source_to_the_result():
    """One line each and the total; sizes follow the number of rows; the table is that of counts_table."""
    big = Counts(rows=2_000_000)
    both = Report(total=big, subsets={"a": COUNTS, "b|c": COUNTS})
    metadata, body = rendered(report=both)
    assert counts_table(both) in body
    assert "| a | 3 | 3 → 5 | 9 → 6 | 2 | 1 | 6 |" in body
    assert "| b&#124;c | 3 |" in body
    assert "| all | 2,000,000 |" in body
    assert metadata["size_categories"] == ["1M<n<10M"]
    assert rendered(report=Report(total=Counts(rows=10**9), subsets={}))[0]["size_categories"] == ["n>1B"]


def test_the_statuses_are_a_histogram_with_meanings():
    """Number and share of each status that occurred; one that is not known has a line as well."""
    odd = replace(COUNTS, rankings={"ranked": 1, "later": 1})
    _, body = rendered(report=Report(total=odd, subsets={}))
    assert "| snippets | `grounded` | 9 | 75.0% | the words stand in the passage |" in body
    assert "| rankings | `later` | 1 | 50.0% |  |" in body
    assert "`unparsed`" not in body


def test_the_chart_has_a_light_and_a_dark_image():
    """The browser chooses; the page names the numbers for those who see neither."""
    charts = {"light": "charts/light.png", "dark": "charts/dark.png"}
    _, body = rendered(charts=charts, repo_id="user/rows")
    assert '<source media="(prefers-color-scheme: dark)"' in body
    assert 'srcset="https://huggingface.co/datasets/user/rows/resolve/main/charts/dark.png"' in body
    assert 'src="charts/light.png"' in body
    assert "of 9 hard negatives, 2 relabelled, 1 filtered, 6 kept" in body
    assert "<picture>" not in rendered()[1]


def test_changed_rows_show_each_moved_passage_before_and_after(sample):
    """The query, the labels from and to, the rank and the marked snippet; unmoved negatives are a number."""
    dataset = refined(sample[:20])
    rows = changed_rows(tables_of(dataset), 5)
    _, body = rendered(changed=rows)
    assert body.count("**Query:**") == len(rows) == 5
    moved = sum(row["decision"]["relabelled"] + row["decision"]["filtered"] for row in rows)
    assert body.count("| negative | **") == moved
    assert body.count("| positive | positive |") == sum(len(row["positive_passages"]) for row in rows) - sum(
        row["decision"]["relabelled"] for row in rows
    )
    assert body.count("<mark><b>") >= moved
    assert "No row was changed." in rendered()[1]


def test_a_row_that_is_long_in_every_way_stays_readable(row):
    """Long texts are cut around the snippet, many passages are a number, a row without ranks has none."""
    text = "before " * 100 + "the very words" + " after" * 100
    start = text.index("the very")
    found = snippet(text="the very words", start=start, end=start + 14)
    passage = {"docid": "d" * 300, "title": "t " * 300, "text": text}
    wide = {
        **row,
        "positive_passages": [passage] * 12,
        "positive_snippets": [found] * 11 + [snippet("no_answer")],
        "positive_origins": [{"label": "negative", "position": i} for i in range(12)],
        "filtered_passages": [],
        "filtered_snippets": [],
        "filtered_origins": [],
    }
    _, body = rendered(changed=[wide])
    assert "… before before" in body
    assert "<mark><b>the very words</b></mark> after" in body
    assert "4 more passages of this row are not shown" in body
    assert max(len(line) for line in body.splitlines() if "the very words" in line) < 900
    assert (
        "(`no_answer`)"
        in rendered(changed=[{**wide, **{k: v[-1:] for k, v in wide.items() if k[:9] == "positive_"}}])[1]
    )


def test_the_prompts_are_there_to_read_folded_and_with_their_hashes():
    """Each task's texts in a fence that no backtick in them ends."""
    prompts = {"question": {"version": "1", "hash": "0a1b", "snippet": "Copy ```` this", "ranking": "Order <b>it</b>"}}
    _, body = rendered({**run(annotator=LLM), "prompts": prompts})
    assert "| question | `1` | `0a1b` |" in body
    assert "<details>\n<summary>Prompts of the task question</summary>\n" in body
    assert "`````text\nCopy ```` this\n`````" in body
    assert "```text\nOrder <b>it</b>\n```" in body
    assert "<details>" not in rendered()[1]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"policy": "relabel"}, "all others stayed"),
        ({"policy": "filter"}, "none became a positive"),
        ({"policy": "relabel+filter", "unsupported": "keep"}, "all negatives stayed"),
        (
            {"policy": "relabel+filter", "reference": "worst", "ties": "below"},
            "above the worst ranked positive of the source became",
        ),
        ({"policy": "of mine"}, "The policy was `of mine`"),
    ],
)
def test_the_policy_is_told_in_words(policy, said):
    """What moved a passage depends on the policy and its parameters."""
    assert said in rendered({**run(), "parameters": {"relabel": policy}})[1]


def test_how_rankings_were_made_is_told():
    """Snippets or passages, or no ranking at all."""
    assert (
        "ordered all passages of a row"
        in rendered({**run(), "parameters": {"relabel": {"policy": "relabel"}, "ranks": {"rank_by": "passage"}}})[1]
    )
    assert "needs no ranking" in rendered({**run(), "parameters": {"relabel": {"policy": "filter"}}})[1]


def test_the_limits_name_the_audit_and_what_failed():
    """An audit's kappa where there is one, and that there is none where there is none."""
    failed = replace(COUNTS, snippets={"error": 4})
    audited = {**run(annotator=LLM), "audit": {"kappa": 0.4123, "low": 0.3, "high": 0.5, "rows": 200}}
    _, body = rendered(audited, report=Report(total=failed, subsets={}))
    assert "audit of 200 rows agrees with the annotator with kappa 0.412 (interval 0.300 to 0.500)" in body
    assert "4 requests had no reply" in body
    assert "language model and no human read each label" in body
    assert "No human audit" in rendered()[1]


@pytest.mark.parametrize(
    ("source", "facts", "given_", "license_", "said"),
    [
        ("mit", None, None, "mit", "`mit`, as the source"),
        (
            "mit",
            None,
            "cc0-1.0",
            "cc0-1.0",
            "`cc0-1.0`, stated by the publisher of this dataset; the source is under `mit`",
        ),
        ("mit", "cc0-1.0", None, "cc0-1.0", "the source is under `mit`"),
        ("mit", "mit", None, "mit", "`mit`, as the source"),
        (None, "mit", None, "mit", "the source names none"),
        (["mit", "apache-2.0"], None, None, ["mit", "apache-2.0"], "`mit`, `apache-2.0`, as the source"),
        (None, None, None, None, "ask its publisher before you share this"),
    ],
)
def test_the_licence_is_the_sources_unless_the_publisher_gives_one(source, facts, given_, license_, said):
    """The card names both where they differ, and that there is none where there is none."""
    metadata, body = rendered(run("user/rows", "hub", license=source), facts=Facts(license=facts), license=given_)
    assert metadata.get("license") == license_
    assert said in body


def test_what_the_publisher_says_goes_into_page_and_metadata():
    """Name, description, citation, languages, tags, sources, homepage and limitations."""
    facts = Facts(
        pretty_name="My rows",
        description="Some *words*.",
        language=("nl",),
        citation="@misc{x}",
        tags=("law", "arhn"),
        source_datasets=("other/rows",),
        homepage="https://example.org/a",
        limitations="Old queries.",
    )
    metadata, body = rendered(run("user/rows", "hub", languages=["en"], gated="auto", config="c", limit=5), facts=facts)
    assert body.startswith(f"\n{BEGIN}\n# My rows\n")
    assert metadata["pretty_name"] == "My rows"
    assert metadata["language"] == ["nl"]
    assert metadata["tags"].count("arhn") == 1
    assert metadata["tags"][-1] == "law"
    assert metadata["source_datasets"] == ["other/rows", "user/rows"]
    for said in ("Some *words*.", "```bibtex\n@misc{x}\n```", "Homepage: <https://example.org/a>", "Old queries."):
        assert said in body
    assert "The source is gated" in body
    assert "Only the first 5 rows" in body
    assert "Homepage: javascript:x" in rendered(facts=Facts(homepage="javascript:x"))[1]


def test_the_dataset_info_is_what_datasets_writes_and_reads(tmp_path):
    """Features, rows and bytes of each split, and the files' bytes as the download."""
    features = Features({"a": Value("string"), "b": [{"c": Value("int32")}]})
    sized = {"default": Config(folder="data", features=features, sizes={"train": (1, 100)})}
    files = {"data/train-00000-of-00001.parquet": {"bytes": 40}, "dropped/train-0.parquet": {"bytes": 5}}
    text = render_card(content({**run(), "files": files}, configs=sized))
    (entry,) = parts(text)[0]["dataset_info"]
    assert entry["splits"] == [{"name": "train", "num_bytes": 100, "num_examples": 1}]
    assert (entry["download_size"], entry["dataset_size"]) == (40, 100)
    (tmp_path / "data").mkdir()
    rows = Dataset.from_list([{"a": "x", "b": [{"c": 1}]}], features=features)
    rows.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert load_dataset_builder(str(tmp_path)).info.features == features
    assert load_dataset(str(tmp_path), split="train")[0] == rows[0]


def block_types(body):
    """The blocks of a page, in order, without what is in them."""
    markdown = pytest.importorskip("markdown_it")
    return [(token.type, token.tag) for token in markdown.MarkdownIt("commonmark").enable("table").parse(body)]


def card_of(text):
    """A card in which every value that a run takes from elsewhere is ``text``."""
    passage = {"docid": text, "title": text, "text": text + "answer" + text}
    found = snippet(text="answer", start=len(text), end=len(text) + 6)
    row = {
        "query": text,
        "subset": text,
        "positive_passages": [passage],
        "positive_snippets": [found],
        "positive_ranks": [1],
        "positive_origins": [{"label": "negative", "position": 0}],
        "negative_passages": [],
        "filtered_passages": [passage],
        "filtered_snippets": [snippet("no_answer")],
        "filtered_ranks": [None],
        "filtered_origins": [{"label": "negative", "position": 1}],
    }
    annotator = {**LLM, "model": text, "revision": text, "server": text, "server_version": text}
    prompts = {"question": {"version": text, "hash": "00", "snippet": f"a{text}", "ranking": f"b{text}"}}
    return render_card(
        content(
            {**run(text, annotator=annotator, license=text), "prompts": prompts},
            report=Report(total=COUNTS, subsets={f"a{text}": COUNTS, f"b{text}": COUNTS}),
            changed=[row],
            facts=Facts(citation=f"@misc{text}"),
        )
    )


def _check_structure(text):
    made, plain = card_of(text), card_of("plain")
    made.encode("utf-8")
    metadata, body = parts(made)
    assert {**metadata, "pretty_name": 0, "license": 0} == {**parts(plain)[0], "pretty_name": 0, "license": 0}
    assert block_types(body) == block_types(parts(plain)[1])
    assert body.count(BEGIN) == body.count(END) == 1
    assert merge_card(made, made) == made
    assert "\u202e" not in body
    assert "\x00" not in made


@pytest.mark.parametrize("text", EVIL)
def test_markup_in_any_value_is_text(text):
    """Rules, bars, HTML, fences, templates, our own markers, controls: shown, not obeyed."""
    _check_structure(text)
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", parts(card_of(text))[1])
    assert "<script>" not in outside
    assert "<img" not in outside


@settings(max_examples=40, deadline=None)
@example("\x85")
@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("-|<>!`#$*_\\[]{}&\n \t~:", max_size=25))
def test_no_value_breaks_the_yaml_or_the_page(text):
    """A source, model, subset, query or passage may hold anything: metadata and blocks of the page stay the same."""
    _check_structure(text)


OURS = render_card(content(run("user/rows", "hub", license="mit", languages=["en"])))
LATER = render_card(
    content(run("user/rows", "hub", LLM, license="apache-2.0"), configs={"default": CONFIGS["default"]})
)


def test_an_existing_readme_keeps_its_words_and_keys():
    """Unknown keys stay, lists are united, what describes the files is ours, text stays before our block."""
    existing = (
        "---\nlicense: cc-by-4.0\nlanguage: no\ntags:\n- mine\n- arhn\nviewer: false\narhn:\n  x: 1\n"
        "configs:\n- config_name: old\nextra_gated_prompt: |\n  Two\n  lines\n---\n# Mine\r\n\r\nWords.\n"
    )
    metadata, body = parts(merge_card(existing, OURS))
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["language"] == ["en", "no"]
    assert metadata["tags"] == [*parts(OURS)[0]["tags"], "mine"]
    assert (metadata["viewer"], metadata["arhn"]) == (False, {"x": 1})
    assert metadata["extra_gated_prompt"] == "Two\nlines\n"
    assert [config["config_name"] for config in metadata["configs"]] == ["default", "dropped"]
    assert body.startswith("# Mine\r\n\r\nWords.\n\n" + BEGIN)
    assert parts(merge_card(existing, OURS, license_given=True))[0]["license"] == "mit"


def test_another_run_replaces_the_block_and_nothing_else():
    """Hand-written text before and after stays byte for byte; tags of the earlier annotator go."""
    first = merge_card("", OURS)
    assert first == OURS
    edited = first.replace(BEGIN, f"Before\r\n{BEGIN}") + "\nAfter ---\n| x |"
    again = merge_card(edited, LATER)
    assert parts(again)[1] == parts(LATER)[1].replace(BEGIN, f"Before\r\n{BEGIN}") + "\nAfter ---\n| x |"
    metadata = parts(again)[0]
    assert "lexical-baseline" not in metadata["tags"]
    assert [config["config_name"] for config in metadata["configs"]] == ["default"]
    assert metadata["license"] == "mit"


@pytest.mark.parametrize("broken", ["---\na: [\n---\nx", "---\na: b: c\n---\n", "---\nd: 2024-99-99\n---\n"])
def test_metadata_that_are_no_yaml_are_refused(broken):
    """Nothing that cannot be read is overwritten."""
    with pytest.raises(InputError, match=r"no YAML.*Nothing was changed"):
        merge_card(broken, OURS)


@settings(max_examples=60, deadline=None)
@given(
    before=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60)
    | st.lists(st.sampled_from([BEGIN, END, "a", "\n", "---\n", "\r\n", "\ufeff"]), max_size=8).map("".join),
    keys=st.dictionaries(
        st.text("abcdef_ é:#-", min_size=1, max_size=5),
        st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.text(max_size=5), max_size=3),
        max_size=3,
    ),
)
@example(before=BEGIN, keys={})
@example(before=f"{BEGIN}a", keys={"a": "no"})
@example(before="---\ntext\n---\nmore", keys={})
def test_merging_twice_is_merging_once(before, keys):
    """Idempotent for every README; its keys and the text outside of the block survive."""
    written = yaml.safe_dump(keys, allow_unicode=True)
    keys = yaml.safe_load(written)  # PyYAML itself loses some line ends
    existing = f"---\n{written}---\n{before}" if keys else before
    try:
        once = merge_card(existing, OURS)
    except InputError:
        return
    assert merge_card(once, OURS) == once
    metadata, body = parts(once)
    assert {name: metadata[name] for name in keys} == keys
    assert parts(OURS)[1].strip("\n") in body
    if END not in before:
        text = before if keys else parsed(before)[1]
        assert text in body


@pytest.mark.parametrize(
    ("text", "metadata", "rest"),
    [
        (
            '---\npretty_name: "Part two ---"\nlanguage: no\n---\ntext',
            {"pretty_name": "Part two ---", "language": "no"},
            "text",
        ),
        ("\ufeff---\r\na: 1\r\n---\r\nx", {"a": 1}, "x"),
        ("---\n\n---\nx", {}, "x"),
        ("---\n---\n# Mine\n---\nx", {}, "---\n---\n# Mine\n---\nx"),
        ("no metadata\n---\n", {}, "no metadata\n---\n"),
    ],
)
def test_metadata_are_read_where_the_hub_finds_them(text, metadata, rest):
    """A rule inside of a value ends nothing, languages stay texts, and no word of the page is taken for metadata."""
    assert parsed(text) == (metadata, rest)


def test_pages_are_found_by_name_and_nowhere_else():
    """A policy has its page; a name that leads out of the folder, or to no page, has none."""
    assert card.is_there("policies/relabel+filter")
    assert not card.is_there("policies/../card")
    assert not card.is_there("policies/of mine")


def test_the_example_of_facts_is_a_facts_file():
    """The commented example loads, and gives every fact that there is."""
    facts = load_facts(Path(arhn.__file__).parents[1] / "dataset_cards" / "facts.example.yaml")
    assert all(getattr(facts, name) for name in Facts.__dataclass_fields__)
    assert facts.language == ("en",)


def test_facts_may_be_short(tmp_path):
    """One text in the place of a list, languages that YAML 1.1 reads as false, and empty keys."""
    path = tmp_path / "facts.yaml"
    path.write_text("language: no\ntags: [a, b]\nlicense: mit\ncitation:\n", encoding="utf-8")
    assert load_facts(path) == Facts(language=("no",), tags=("a", "b"), license="mit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("a: [", "cannot be read.*Expected a YAML file"),
        ("- a", "holds list; a mapping with pretty_name, description, license"),
        ("licence: mit\nname: x", "unknown licence, name; known are pretty_name"),
        ("license: 1", "license is 1; a text was expected"),
        ("license: [mit, x]", "license is .*; a text was expected"),
        ("tags: [1]", r"tags is \[1\]; a text, or a list of texts, was expected"),
        ("description: ' '", "description is ' '"),
    ],
)
def test_facts_that_are_none_are_told(text, message, tmp_path):
    """What was found, what is known, and where an example is."""
    path = tmp_path / "facts.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_facts(path)


def test_a_missing_template_is_told(monkeypatch, tmp_path):
    """A broken installation says which file is missing."""
    monkeypatch.setattr(card, "_roots", lambda: [tmp_path])
    with pytest.raises(FileNotFoundError, match=r"dataset_cards/.*\.md is missing.*reinstall"):
        render_card(content())


# -- the code of a card, executed --------------------------------------------------------------------------------------


def python_blocks(body):
    """The code blocks of a page, with the heading under which each stands."""
    heading, found = "", []
    for part in re.finditer(r"^(?:### ([^\n]*)|```python\n(.*?)^```)$", body, re.MULTILINE | re.DOTALL):
        if part.group(1):
            heading = part.group(1)
        else:
            found.append((heading, part.group(2)))
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory, sample):
    """A folder laid out as a published repository, of a few rows, with its card."""
    folder = tmp_path_factory.mktemp("published")
    wide = refined(sample[:6])
    table = wide.with_format("arrow")[:]
    tables = {
        "default": canonical_of(table),
        "evidence": evidence_of(table, 0),
        **{name: table_of(name, table)[0] for name in ("triplet", "n-tuple", "pair", "labeled-list", "labeled-pair")},
        **{name: table_of(name, table)[0] for name in ("corpus", "queries", "qrels")},
    }
    configs = {}
    for name, rows in tables.items():
        (folder / name).mkdir()
        pq.write_table(rows, folder / name / "train-00000-of-00001.parquet")
        configs[name] = Config(
            folder=name,
            features=Features.from_arrow_schema(rows.schema),
            sizes={"train": (rows.num_rows, rows.nbytes)},
            content="" if name in ("default", "evidence") else table_named(name).content(Options()),
        )
    (folder / "flagembedding").mkdir()
    Dataset(table_of("flagembedding", table)[0]).to_json(str(folder / "flagembedding" / "train.jsonl"))
    files = ["flagembedding", "beir"]
    values = {"configs": configs, "layout": "published", "repo_id": "user/rows"}
    values |= {"files": [known_formats()[name].files for name in files], "examples": examples_of([*configs, *files])}
    text = render_card(content(report=build_report([wide]), **values))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder, wide


def execute(code, folder):
    """The names after the code has run with ``folder`` in the place of the repository."""
    names = {}
    exec(compile(code.replace("user/rows", str(folder)).replace("PATH_OR_REPO_ID", str(folder)), "card", "exec"), names)
    return names


def test_the_code_that_loads_runs_as_it_stands(published, monkeypatch):
    """Rows, evidence and revert, and the files of FlagEmbedding; every configuration loads with its metadata."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: name)
    folder, wide = published
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = python_blocks(text)
    for config in parts(text)[0]["configs"]:
        assert len(load_dataset(str(folder), config["config_name"], split="train"))
    assert "up to `negative_7`; a row with fewer negatives repeats its own" in text
    assert "- `flagembedding/SPLIT.jsonl`, or `flagembedding/SPLIT/SUBSET.jsonl` of several subsets" in text
    (plain, joined), (files,), (beir,) = (
        [execute(code, folder) for heading, code in blocks if heading == wanted]
        for wanted in ("datasets", "FlagEmbedding", "BEIR")
    )
    assert beir["folder"] == f"{folder}/beir"
    assert plain["ds"].column_names == ["query_id", "query", "positive_passages", "negative_passages", "subset"]
    assert list(joined["source"].select_columns(["query", "negative_passages"])) == list(
        wide.map(arhn.revert).select_columns(["query", "negative_passages"])
    )
    assert all(not row["decision"]["relabelled"] for row in joined["other"])
    assert (Path(files["folder"]) / "flagembedding" / "train.jsonl").is_file()


def test_the_code_of_a_refined_folder_runs_as_it_stands(tmp_path, sample):
    """Load, revert and another policy, from a folder that was never published."""
    wide = refined(sample[:4])
    (tmp_path / "data").mkdir()
    wide.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text(
        render_card(content(configs={"default": Config(folder="data", sizes={"train": (4, 300)})})), encoding="utf-8"
    )
    blocks = [code for _, code in python_blocks((tmp_path / "README.md").read_text(encoding="utf-8"))]
    done = [execute(code, tmp_path) for code in blocks]
    assert len(done) == 2
    assert [row["query"] for row in done[1]["source"]] == [row["query"] for row in sample[:4]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, sample):
    """A folder with a random BERT of one small layer."""
    pytest.importorskip("sentence_transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [row["query"] for row in sample], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(BertConfig(vocab_size=len(fast), max_position_embeddings=32, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
def test_the_code_that_trains_runs_as_it_stands(published, encoder, tmp_path, monkeypatch):
    """Retriever, rerankers and evaluation with sentence-transformers; only the base model and the steps are others."""
    import transformers

    folder, _ = published
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    post_init = transformers.TrainingArguments.__post_init__

    def few_steps(arguments):
        arguments.max_steps, arguments.report_to, arguments.save_strategy = 2, "none", "no"
        arguments.disable_tqdm = True
        post_init(arguments)

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", few_steps)
    blocks = {
        heading: code.replace("distilbert/distilroberta-base", encoder)
        for heading, code in python_blocks((folder / "README.md").read_text(encoding="utf-8"))
    }
    retriever = blocks["sentence-transformers, a retriever"]
    for config in ("triplet", "n-tuple", "pair"):
        assert execute(retriever.replace('"triplet"', f'"{config}"'), folder)["trainer"].state.global_step == 2
    for kind in ("lists", "pairs"):
        assert execute(blocks[f"sentence-transformers, a reranker on {kind}"], folder)["trainer"].state.global_step == 2
    assert execute(blocks["MTEB"], folder)["scores"]
