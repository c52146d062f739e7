"""A stand-in for vLLM with the signatures of 0.32: it shows how it is called, and nothing of how vLLM generates.

Put its folder on ``sys.path``. What was seen with the real engine stands in docs/performance.md.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from arhn_datasets import Lexical
from arhn_datasets.testing.replies import Replies

__version__ = "0.32.0"
SECONDS = float(os.environ.get("STANDIN_SECONDS", "0"))  # for each reply
made: list[LLM] = []
"""Each engine that was started."""


@dataclass
class StructuredOutputsParams:
    json: str | dict | None = None


@dataclass
class SamplingParams:
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    structured_outputs: StructuredOutputsParams | None = None


sampling_params = SimpleNamespace(StructuredOutputsParams=StructuredOutputsParams)


class Tokenizer:
    """A token a word."""

    chat_template: str | None = "a template"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, **options):
        assert not tokenize
        assert add_generation_prompt
        assert options == {"enable_thinking": False, **({} if self.chat_template else {"chat_template": PLAIN})}
        return "\n".join(message["content"] for message in messages)

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": list(range(len(text.split())))}


PLAIN = "{{ (messages | map(attribute='content') | join('\n\n')) ~ '\n' }}"


@dataclass
class LLM:
    model: str
    tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    max_model_len: int = 4096
    enforce_eager: bool = False
    reply: Any = field(default=None, init=False)

    def __post_init__(self):
        if self.model == "some/nonsense":
            raise ValueError("Invalid repository ID or local directory specified: 'some/nonsense'")
        self._tokenizer = Tokenizer()
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.max_model_len))
        self.batches = []
        speaker = Replies(Lexical())
        self.reply = lambda prompt: asyncio.run(speaker.reply(prompt))
        made.append(self)

    def get_tokenizer(self):
        return self._tokenizer

    def chat(
        self,
        messages,
        sampling_params=None,
        use_tqdm=True,
        lora_request=None,
        priority=None,
        chat_template=None,
        chat_template_content_format="auto",
        add_generation_prompt=True,
        continue_final_message=False,
        tools=None,
        chat_template_kwargs=None,
        tokenization_kwargs=None,
        mm_processor_kwargs=None,
    ):
        assert len(messages) == len(sampling_params)
        assert (chat_template is None) == bool(self._tokenizer.chat_template)
        self.batches.append((messages, sampling_params, chat_template_kwargs))
        prompts = ["\n".join(turn["content"] for turn in one) for one in use_tqdm(messages, desc="Rendering prompts")]
        if any("refuse me" in prompt for prompt in prompts):
            raise ValueError("This prompt is refused")
        if any("engine dies" in prompt for prompt in prompts):
            raise RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        bar = use_tqdm(total=len(prompts), desc="Processed prompts", dynamic_ncols=True, postfix="toks/s")
        outputs = []
        for prompt, options in zip(prompts, sampling_params, strict=True):
            time.sleep(SECONDS)
            text, reason = self.reply(prompt), "stop"
            if len(text.split()) > options.max_tokens:
                text, reason = " ".join(text.split()[: options.max_tokens]), "length"
            completion = SimpleNamespace(text=text, token_ids=text.split(), finish_reason=reason)
            outputs.append(SimpleNamespace(outputs=[completion], prompt_token_ids=prompt.split()))
            assert bar.format_dict["elapsed"] >= 0
            bar.update(1)
            if bar.n == len(prompts):
                bar.refresh()
        bar.close()
        return outputs
