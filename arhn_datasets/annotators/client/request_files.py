"""The files of requests that a plan hands over: OpenAI's batch form as JSONL, and as Parquet with ``messages``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arhn_datasets.annotators.client.refusals import OPTIONAL
from arhn_datasets.errors import OutputError
from arhn_datasets.rows.options import check_integer, check_numbers

URL = "/v1/chat/completions"
MOST_LINES, MOST_MEGABYTES = 50_000, 100.0  # of a file, as providers take it
MEGABYTE = 1_000_000
_OF_OPENAI = re.compile(r"gpt-(?!oss)|chatgpt|o\d\b|ft:gpt")
_THINKS_AT_OPENAI = re.compile(r"gpt-5|o\d\b")


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """The most that one file of requests holds.

    Raises:
        ConfigurationError: a value is out of range.
    """

    lines: int = MOST_LINES
    megabytes: float = MOST_MEGABYTES

    def __post_init__(self) -> None:
        check_integer("lines", self.lines, least=1)
        check_numbers(self, "megabytes", least=0.001)


def line_of(key: bytes, body: Mapping[str, Any]) -> bytes:
    """A request as a line; beyond ASCII it is escaped, since some readers split at other ends of lines."""
    return json.dumps({"custom_id": key.hex(), "method": "POST", "url": URL, "body": body}).encode() + b"\n"


def not_taken_by(model: str) -> frozenset[str]:
    """The options that a model of OpenAI refuses, by its name; of others their replies tell."""
    name = model.rpartition("/")[2]
    if _THINKS_AT_OPENAI.match(name):
        return frozenset(OPTIONAL)
    return frozenset(("chat_template_kwargs",)) if _OF_OPENAI.match(name) else frozenset()


def check_file(path: Path, limits: FileLimits, model: str) -> None:
    """Refuse a file of requests that is not what every provider takes: one bad line ends some servers' whole run.

    Raises:
        OutputError: names the line, and what is wrong there.
    """
    seen: set[bytes] = set()
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                found = _wrong(line, model, seen)
                if found or number > limits.lines:
                    raise OutputError(
                        f"Line {number} of {path} is no request that can be handed over: {found or 'one too many'}. "
                        "Expected JSON with custom_id, method, url and body. Remove the folder and plan again."
                    )
            size = lines.tell()
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error}). Expected a file of requests of this plan.") from error
    if size > limits.megabytes * MEGABYTE:
        raise OutputError(f"{path} has {size:,} bytes; {limits.megabytes:g} MB were expected at most.")


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "model": str,
    "messages": list,
    "max_tokens": int,
    "max_completion_tokens": int,
    "temperature": (int, float),
    "stream": bool,
    "chat_template_kwargs": dict,
    "response_format": dict,
}


def _wrong(line: bytes, model: str, seen: set[bytes]) -> str | None:
    """What is wrong with a line of a file of requests, None for nothing."""
    try:
        entry = json.loads(line)
        key, body = bytes.fromhex(entry["custom_id"]), entry["body"]
        messages = body["messages"]
        plain = all(type(one["content"]) is str and type(one["role"]) is str for one in messages)
    except (ValueError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if len(key) != 16 or key in seen:
        return "its custom_id is no key, or stands there twice"
    seen.add(key)
    if (entry.get("method"), entry.get("url")) != ("POST", URL) or body.get("model") != model:
        return "its method, its URL or its model is another one"
    odd = [name for name, value in body.items() if name not in _TYPES or not isinstance(value, _TYPES[name])]
    if odd or not messages or not plain or not line.endswith(b"\n"):
        return f"its body has an odd value ({', '.join(odd) or 'messages'})"
    return None


def requests_in(path: Path) -> Iterator[dict[str, Any]]:
    """The requests of a file, one after the other."""
    with open(path, "rb") as lines:
        yield from map(json.loads, lines)


def write_messages(files: Sequence[Path]) -> list[Path]:
    """Each file of requests as Parquet beside it: a row a request, with the column ``messages``; their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("custom_id", pa.string()),
            ("messages", pa.list_(message)),
            ("model", pa.string()),
            ("max_tokens", pa.int64()),
            ("response_format", pa.string()),
        ]
    )
    written = []
    for path in files:
        target = path.with_suffix(".parquet")
        partial = target.with_name(f"{target.name}.partial")
        with pq.ParquetWriter(partial, schema) as writer:
            rows: list[dict[str, Any]] = []
            for entry in requests_in(path):
                body = entry["body"]
                form = body.get("response_format")
                rows.append(
                    {
                        "custom_id": entry["custom_id"],
                        "messages": body["messages"],
                        "model": body["model"],
                        "max_tokens": body.get("max_tokens", body.get("max_completion_tokens")),
                        "response_format": None if form is None else json.dumps(form),
                    }
                )
                if len(rows) == 1000:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
        partial.replace(target)
        written.append(target)
    return written
