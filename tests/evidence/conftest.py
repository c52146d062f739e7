"""Small random models of sentence-transformers."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def bi_encoder(encoder, tmp_path_factory):
    """A bi-encoder with prompts of its own."""
    from sentence_transformers import SentenceTransformer

    folder = str(tmp_path_factory.mktemp("bi-encoder"))
    prompts = {"query": "question: ", "document": "text: "}
    SentenceTransformer(encoder, device="cpu", prompts=prompts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(encoder, tmp_path_factory):
    """A cross-encoder with a random head of one score, from below to above 0."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(1)
    folder = str(tmp_path_factory.mktemp("cross-encoder"))
    model = CrossEncoder(encoder, num_labels=1, device="cpu", activation_fn=torch.nn.Identity())
    head = {name.rpartition(".")[2]: value for name, value in model.named_parameters() if "classifier" in name}
    with torch.no_grad():  # a random model gives nearly the same score to everything
        head["weight"] *= 1000
        head["bias"] -= float(model.predict([("why?", "because"), ("how?", "in this way")]).mean())
    model.save_pretrained(folder)
    return folder
