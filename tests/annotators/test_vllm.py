"""vLLM in this process, against a stand-in with the signatures of the real one (tests/fakes/standins/vllm.py)."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

import arhn_datasets as arhn
from arhn_datasets import cli
from arhn_datasets.annotators.interface import GradeRequest
from arhn_datasets.errors import AnnotatorError, ConfigurationError, MissingDependencyError
from arhn_datasets.folder.reading import open_folder, read_rows
from arhn_datasets.rows import background
from arhn_datasets.rows.records import ERROR, JUDGED, UNPARSED
from tests.conftest import SAMPLE
from tests.fakes.served import served

pytest.importorskip("transformers")

STANDINS = Path(__file__).parents[1] / "fakes" / "standins"
LEXICAL = arhn.Lexical()


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in as the module that a user would have installed."""
    monkeypatch.syspath_prepend(str(STANDINS))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    module = importlib.import_module("vllm")
    assert "stand-in" in module.__doc__
    yield module
    sys.modules.pop("vllm", None)


@pytest.fixture
def folder(tmp_path):
    """Where a model lies, as far as its identity goes."""
    there = tmp_path / "model"
    there.mkdir()
    (there / "config.json").write_text("{}", encoding="utf-8")
    return str(there)


def graded(annotator, text="tin melts", query="tin"):
    request = GradeRequest(query=query, passage={"title": "", "text": text}, task="question")
    return background.run(annotator.grade(request))


def test_the_command_writes_what_a_server_with_the_same_replies_gives(vllm, folder, tmp_path, capsys):
    """Rows of a whole run are those of the endpoint; the engine gets its options, and many requests at once."""
    options = [f"--local-option={one}" for one in ("dtype=float32", "max_model_len=8192", "gpu_memory_utilization=0.5")]
    command = [str(SAMPLE), "--limit", "20", "--cache", "none"]
    local = ["--annotator", "local", "--local-engine", "vllm", "--model", folder, *options]
    assert cli.refine_command([*command, *local, "--output", str(tmp_path / "local")]) == 0
    said = capsys.readouterr()
    with served() as server:
        assert cli.refine_command([*command, "--endpoint", server.url, "--output", str(tmp_path / "served")]) == 0
        asked = server.stats.requests
    assert rows_of(tmp_path / "local") == rows_of(tmp_path / "served")
    (engine,) = vllm.made
    assert (engine.dtype, engine.max_model_len, engine.gpu_memory_utilization) == ("float32", 8192, 0.5)
    assert max(len(messages) for messages, *_ in engine.batches) > 100
    replies = sum(len(messages) for messages, *_ in engine.batches)
    assert 0 < replies <= asked
    assert f"requests  {replies:,} replies, 0 from the store" in said.out
    run = json.loads((tmp_path / "local" / "run.json").read_text(encoding="utf-8"))
    assert (run["annotator"]["server"], run["annotator"]["server_version"]) == ("vllm", "0.32.0")


def rows_of(folder):
    return [row for split in open_folder(folder).splits for row in read_rows(folder, split)]


def test_each_request_is_greedy_and_says_its_limit(vllm, folder, row):
    """Snippets and rankings go with their own limits, temperature 0, a seed, thinking off, and no schema unasked."""
    annotator = arhn.Local(folder, engine="vllm", max_tokens=77, cache="none")
    for stage in (arhn.Snippets(annotator=annotator), arhn.Ranks(annotator=annotator)):
        row = stage(row)
    sent = [one for _, options, _ in vllm.made[-1].batches for one in options]
    assert {one.max_tokens for one in sent[:4]} == {77}
    assert sent[-1].max_tokens != 77
    assert {(one.temperature, one.seed, one.structured_outputs) for one in sent} == {(0.0, 0, None)}
    assert {str(template) for *_, template in vllm.made[-1].batches} == {"{'enable_thinking': False}"}


def test_a_schema_is_held_where_it_is_asked_for(vllm, folder):
    """With constrained=True each request brings its schema."""
    annotator = arhn.Local(folder, engine="vllm", constrained=True, cache="none")
    graded(annotator)
    ((_, (options,), _),) = vllm.made[-1].batches
    assert options.structured_outputs.json["required"] == ["grade"]


def test_a_cut_reply_is_no_evidence(vllm, folder):
    """What ended by its length counts for nothing, also where it reads like a reply, and is asked again."""
    annotator = arhn.Local(folder, engine="vllm")
    graded(annotator, "of no matter")
    vllm.made[-1].reply = lambda prompt: "3 " * 60
    found = graded(annotator)
    assert (found.status, found.grade) == (UNPARSED, None)
    assert found.detail.startswith("cut off after 32 tokens")
    vllm.made[-1].reply = lambda prompt: "2"
    assert graded(annotator).grade == 2


def test_long_passages_are_cut_to_the_context(vllm, folder):
    """VLLM would end the whole batch by an error; a passage is cut before, and its detail says so."""
    annotator = arhn.Local(folder, engine="vllm", engine_options={"max_model_len": 400}, cache="none")
    found = graded(annotator, "tin " * 2000)
    assert found.status == JUDGED
    assert "% of the passage was read" in found.detail
    assert max(len(messages[0][0]["content"].split()) for messages, *_ in vllm.made[-1].batches) <= 400


def test_a_request_that_is_refused_spoils_no_other(vllm, folder):
    """The others of its batch have their replies; it has a status, and moves nothing."""
    annotator = arhn.Local(folder, engine="vllm", cache="none")

    async def both():
        requests = [
            GradeRequest(query="tin", passage={"title": "", "text": text}, task="question")
            for text in ("tin melts", "refuse me", "tin")
        ]
        return await background.gathered(annotator.grade(request) for request in requests)

    first, refused, last = background.run(both())
    assert (first.status, refused.status, last.status) == (JUDGED, ERROR, JUDGED)
    assert "vLLM refused the request: This prompt is refused" in refused.detail
    assert annotator.statistics()["failures"] == 1
    assert annotator.statistics()["replies"] == 2


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (
            {"model": "some/nonsense", "revision": "x"},
            ConfigurationError,
            "cannot be loaded .ValueError: Invalid repos",
        ),
        ({"text": "the engine dies"}, AnnotatorError, "failed to generate .RuntimeError: EngineCore encountered"),
    ],
)
def test_an_engine_that_fails_ends_the_run(vllm, folder, monkeypatch, made, error, said):
    """What the engine says, and what to do: no request after it can succeed."""
    from arhn_datasets.annotators import local

    monkeypatch.setattr(local, "_identify", lambda model, revision: {"model": model, "revision": revision})
    annotator = arhn.Local(made.get("model", folder), engine="vllm", cache="none")
    with pytest.raises(error, match=said):
        graded(annotator, made.get("text", "tin"))


def test_without_a_chat_template_the_texts_are_sent_alone(vllm, folder, monkeypatch):
    """A base model has none, and vLLM refuses to chat with it: the template of the texts alone is given."""
    monkeypatch.setattr(vllm.Tokenizer, "chat_template", None)
    assert graded(arhn.Local(folder, engine="vllm", cache="none")).status == JUDGED


def test_without_vllm_the_message_says_what_to_install(folder, monkeypatch, tmp_path, capsys):
    """Before any work, in Python and on the command line."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'arhn_datasets\[vllm\]'"):
        arhn.Local(folder, engine="vllm").identity("snippets")
    options = ["--annotator", "local", "--local-engine", "vllm", "--model", folder, "--output", str(tmp_path / "out")]
    assert cli.refine_command([str(SAMPLE), *options]) == 2
    assert "pip install 'arhn_datasets[vllm]'" in capsys.readouterr().err


def test_what_changes_a_reply_is_part_of_the_identity(vllm, folder):
    """The engine and its quantization are; memory and parallelism are not, and no token of the Hub is ever."""
    plain = arhn.Local(folder, engine="vllm")
    of_machine = {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "hf_token": "hf_secret", "max_num_seqs": 8}
    assert arhn.Local(folder, engine="vllm", engine_options=of_machine).identity("ranks") == plain.identity("ranks")
    others = [arhn.Local(folder), arhn.Local(folder, engine="vllm", engine_options={"quantization": "fp8"})]
    assert len({json.dumps(one.identity("ranks")) for one in (plain, *others)}) == 3
    assert "engine" not in arhn.Local(folder).identity("ranks")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "sglang"}, "engine is 'sglang'; one of transformers, vllm was expected"),
        ({"engine": "vllm", "device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"engine_options": {"dtype": "float16"}}, r"engine_options has dtype; give it as an argument"),
    ],
)
def test_options_that_cannot_work(options, said):
    """Each is told with what was expected."""
    with pytest.raises(ConfigurationError, match=said):
        arhn.Local("some/model", **options)


@pytest.mark.parametrize("option", ["max_model_len", "=4", "max model len=4"])
def test_an_option_of_the_command_without_a_name_or_a_value(option):
    """--local-option says which form it has."""
    given = cli.refine_parser().parse_args(
        ["in", "--output", "out", "--annotator", "local", "--model", "m", "--local-option", option]
    )
    with pytest.raises(ConfigurationError, match="NAME=VALUE was expected"):
        cli.configured_stages(given)
