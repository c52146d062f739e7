"""The whole command against real servers that we did not write.

`transformers serve` runs with two tiny random models. llama.cpp's `llama-server` joins where LLAMA_SERVER names its
binary (CONTRIBUTING.md tells how to build it), with the tiny Llama in its format, or the file of LLAMA_SERVER_MODEL.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from datasets import load_dataset

from arhn_datasets.rows.records import RANKING_STATUSES, SNIPPET_STATUSES
from tests.conftest import SAMPLE

pytestmark = pytest.mark.integration
pytest.importorskip("transformers")
pytest.importorskip("uvicorn", reason="transformers serve needs the extra 'serving'")

BIN = Path(sys.executable).parent
START_SECONDS = 120
COMMAND_SECONDS = 300  # of a command that hangs; none takes as many
SHORT = ("--max-tokens", "16", "--max-unread", "1")  # a random model never ends by itself


LLAMA_SERVER, LLAMA_MODEL = os.environ.get("LLAMA_SERVER"), os.environ.get("LLAMA_SERVER_MODEL")
SERVERS = ["qwen3", "llama", pytest.param("llama-server", marks=pytest.mark.llama_server)]


@pytest.fixture(scope="module", params=SERVERS)
def served(request, tiny_models, tmp_path_factory):
    """URL and model of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, cache = tmp_path_factory.mktemp("serve") / "log", tmp_path_factory.mktemp("hub")
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if request.param == "llama-server":
        if not LLAMA_SERVER:
            pytest.skip("LLAMA_SERVER names no llama-server")
        file = LLAMA_MODEL or converted(Path(tiny_models["llama"]), tmp_path_factory.mktemp("gguf") / "tiny.gguf")
        model = "any"
        command = [LLAMA_SERVER, "-m", str(file), "-c", "16384", "-np", "8", "--no-ui", "--alias", model, *where]
    else:
        model = tiny_models[request.param]
        command = [str(BIN / "transformers"), "serve", model, *where]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", model
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def converted(folder, path):
    """The tiny Llama as a GGUF file; llama.cpp's own converter refuses a tokenizer that it does not know."""
    gguf = pytest.importorskip("gguf", reason="the tiny model is written by gguf, or name one by LLAMA_SERVER_MODEL")
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if one in special else gguf.TokenType.NORMAL for one in tokens])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():  # random, in any order
        writer.add_tensor(names.get_name(name, (".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(command):
    """The ended command."""
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)


@pytest.mark.parametrize(
    "mode", [[], pytest.param(["--batch-size", "2"], marks=pytest.mark.exhaustive)], ids=["rows", "batches"]
)
def test_the_command_ends_well_on_the_replies_of_a_random_model(served, mode, tmp_path):
    """Every status is recorded, every row is there, and no garbage has become a label."""
    url, model = served
    command = [str(BIN / "arhn-refine"), str(SAMPLE), "--limit", "3", "--output", str(tmp_path / "out"), *mode]
    done = run([*command, *SHORT, "--endpoint", url, "--model", model])
    assert done.returncode == 0, done.stderr
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert len(rows) == 3
    for row in rows:
        assert row["ranking"]["status"] in RANKING_STATUSES
        for side in ("positive", "negative", "filtered"):
            moved = zip(row[f"{side}_snippets"], row[f"{side}_origins"], strict=True)
            for snippet, origin in moved:
                assert snippet["status"] in SNIPPET_STATUSES
                assert snippet["status"] != "error"
                assert snippet["status"] == "grounded" or origin["label"] == side
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["all"]
    assert sum(counts["snippets"].values()) == counts["positives"] + counts["negatives"]


def test_without_a_model_name_the_one_that_is_listed_answers(served, tmp_path):
    """Where the server lists none, as older versions do, the command says which option names it, and exits with 2."""
    url, model = served
    listed = json.load(urllib.request.urlopen(f"{url}/v1/models", timeout=10))["data"]
    done = run(
        [str(BIN / "arhn-refine"), str(SAMPLE), "--limit", "1", *SHORT, "--output", str(tmp_path), "--endpoint", url]
    )
    if not listed:
        assert done.returncode == 2
        assert "names no model; say which one has to answer, with model= or --model" in done.stderr
        return
    assert [one["id"] for one in listed] == [model]
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["annotator"]["model"] == model
