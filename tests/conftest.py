"""Fixtures: no user cache, no environment of the developer's, a server on loopback, and a tiny real model."""

from __future__ import annotations

import os
import tempfile

# Before datasets is imported anywhere: its caches belong to the test run.
_home = tempfile.TemporaryDirectory(prefix="arhn-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _home.name
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import arhn_datasets as arhn
from arhn_datasets.folder.report import Tally
from arhn_datasets.rows import background
from tests.fakes.hub import running
from tests.fakes.served import served

# A busy machine is slow, and not wrong.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SCRIPTS = Path(__file__).parents[1] / "scripts"
SAMPLE = Path(arhn.__file__).parent / "samples" / "questions.jsonl"


def pytest_configure(config):
    """Python 3.13.0 ends a server of asyncio twice where its connections were reset, and says so as it is collected."""
    if sys.version_info[:2] in ((3, 12), (3, 13)):
        twice = "ignore:Exception ignored in. <function _SelectorTransport:pytest.PytestUnraisableExceptionWarning"
        config.addinivalue_line("filterwarnings", twice)


def pytest_addoption(parser):
    """An option of our own, for another interpreter beside a whole run."""
    parser.addoption("--first-cases", action="store_true", help="of each test only the first of its parameters")


# Files with few tests that take long: begun last, one worker would be left with them.
LONG = {"test_ray.py", "test_compare_policies.py", "test_transformers_serve.py", "test_train.py", "test_sharing.py"}
LONG |= {"test_evaluate_retriever.py", "test_publishing.py", "test_docs.py", "test_faults.py", "test_refine.py"}


def pytest_collection_modifyitems(config, items):
    """Long files first, and only the first case of each test where no more are wanted."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("first_cases"):
        first = {}
        for item in items:
            first.setdefault(item.nodeid.partition("[")[0], item)
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = list(first.values())


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory, monkeypatch):
    for name in ("ARHN_ENDPOINT", "ARHN_MODEL", "ARHN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARHN_CACHE", str(tmp_path_factory.mktemp("answers")))
    yield
    background.close()


@pytest.fixture(scope="session")
def sample():
    """The rows of the sample that is shipped."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def row():
    """A row with one positive, a false negative, an ambiguous negative and a plain one."""
    return {
        "query_id": "q1",
        "query": "At what temperature does tin melt?",
        "positive_passages": [{"docid": "p1", "title": "", "text": "Tin is soft. Tin melts at about 232 °C."}],
        "negative_passages": [
            {"docid": "n1", "title": "Tin", "text": "The melting temperature of tin is 232 °C. It is cheap."},
            {"docid": "n2", "title": "", "text": "Tin can melt on a kitchen stove."},
            {"docid": "n3", "title": "", "text": "Copper is red."},
        ],
        "subset": "metals",
    }


@pytest.fixture
def server():
    """A TGI-like server on loopback whose replies are those of the lexical baseline."""
    with served() as running:
        yield running


@pytest.fixture
def hub(request, tmp_path, monkeypatch):
    """A Hub on loopback that this process uses; with LFS storage, and with ``both_storages`` with Xet, too."""
    with running(tmp_path / "hub", getattr(request, "param", "lfs"), monkeypatch) as hub:
        yield hub


def snippet(status="grounded", text="s", **fields):
    """A value of a snippet column."""
    grounded = status == "grounded"
    return {
        "snippet": text if grounded else None,
        "start": 0 if grounded else None,
        "end": len(text) if grounded else None,
        "field": "text" if grounded else None,
        "status": status,
        "detail": None,
        **fields,
    }


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of two random causal LLMs, a Qwen3 and a Llama, with a tokenizer trained on the sample."""
    return make_tiny_models(tmp_path_factory.mktemp("models"))


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make_tiny_models(folder):
    """Make and save the models; some 300,000 random parameters each."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SAMPLE.read_text(encoding="utf-8").splitlines(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    shape = {
        "vocab_size": len(fast),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    torch.manual_seed(0)
    made = {}
    for name, model in (
        ("qwen3", Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape))),
        ("llama", LlamaForCausalLM(LlamaConfig(**shape))),
    ):
        made[name] = str(folder / name)
        model.generation_config.do_sample = False
        model.save_pretrained(made[name])
        fast.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A folder with a random BERT of two small layers and a tokenizer trained on the sample."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special)
    tokenizer.train_from_iterator(SAMPLE.read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(BertConfig(vocab_size=len(fast), max_position_embeddings=128, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def tables_of(dataset):
    """The rows of a dataset in tables."""
    yield from dataset.with_format("arrow").iter(1000)


def build_report(splits):
    """The counts of some splits."""
    tally = Tally()
    for dataset in splits:
        for table in tables_of(dataset):
            tally.add(table)
    return tally.report()


@pytest.fixture
def script(hub, monkeypatch, capsys):
    """Run a script as a command: (exit code, stdout, stderr)."""

    def run(name, *given, **options):
        named = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
        monkeypatch.setattr(sys, "argv", [name, *(str(part) for part in (*given, *named) if part is not True)])
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
