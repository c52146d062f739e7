"""Constrained output: which grammars the server takes, and a reply brought into their form.

What constrained text cannot hold follows outlines-core as TGI ships it: a JSON string escapes ``"`` and a backslash
only, so a snippet loses its line breaks; keys stand in the schema's order, at most one space after a separator.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arhn_datasets.annotators.prompts import NO_ANSWER_MARKER
from arhn_datasets.testing.problems import batch_failed, dumps, invalid

MOST_ITEMS = 4096
COMPILED = frozenset(("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "properties", "prefixItems"))

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_IDENTIFIER = re.compile(r"\[\s*(\d+)\s*\]")
_LINE = re.compile(r"^(\w+): (.*)$", re.MULTILINE)
_NUMBERED = re.compile(r"(?:\[\d+\] .*(?:\n|\Z))+")
# Look-around and back references, which the finite automaton of outlines does not have.
_NOT_REGULAR = re.compile(r"\(\?(?:[=!>]|<[=!]|P=)|\\[1-9]")


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A grammar that the router has let through: a JSON schema or a regular expression."""

    key: str
    schema: Mapping[str, Any] | None = None
    pattern: str = ""

    def constrain(self, reply: str) -> str:
        """``reply`` in the form of the grammar.

        Raises:
            Problem: 424, an expression that only the backend finds out to be none.
        """
        if self.schema is not None:
            return _object(self.schema, self.schema, reply)
        if _NOT_REGULAR.search(self.pattern):
            raise batch_failed("unsupported regular expression")
        try:
            pattern = re.compile(self.pattern)
        except re.error as error:
            raise batch_failed(str(error)) from None
        return next((form for form in _forms(reply) if pattern.fullmatch(form)), None) or _least(self.pattern)


def read_grammar(asked: Mapping[str, Any] | None, *, supported: bool) -> Grammar | None:
    """The grammar of a request.

    Raises:
        Problem: 422, grammars are switched off, or the schema is none that the server can use.
    """
    if asked is None:
        return None
    if not supported:
        raise invalid("grammar is not supported")
    if asked["type"] == "regex":
        return Grammar(key=f"regex:{asked['value']}", pattern=asked["value"])
    schema = asked["value"]["schema"] if asked["type"] == "json_schema" else asked["value"]
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise invalid(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise invalid("grammar is not supported")
    _check_schema(schema)
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    for kind in schema["properties"].values():
        _check_compilable(kind, schema)
    return Grammar(key=f"json:{dumps(schema)}", schema=schema)


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is no schema of the draft that the router knows; takes all where ``jsonschema`` is not installed."""
    try:
        jsonschema = importlib.import_module("jsonschema")
    except ImportError:
        return
    try:
        jsonschema.Draft202012Validator.check_schema(schema, format_checker=jsonschema.FormatChecker(formats=()))
    except jsonschema.SchemaError as error:
        raise invalid(f"grammar is not valid: {error.message}") from None


def _check_compilable(kind: Any, root: Mapping[str, Any]) -> None:
    """Refuse what outlines makes no expression of, though it is a schema."""
    said = "cannot compile regex from schema:"
    if not isinstance(kind, Mapping):
        raise invalid(f"{said} Invalid JSON Schema: expected an object")
    if "$ref" in kind and not _resolved(kind, root):
        raise invalid(f"{said} Invalid reference path: {str(kind['$ref']).removeprefix('#/')}")
    if kind and not COMPILED.intersection(kind):
        raise invalid(f"{said} Unsupported JSON Schema structure {dumps(kind)}")
    for part in (*kind.get("properties", {}).values(), *(kind[name] for name in ("items",) if name in kind)):
        _check_compilable(part, root)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], reply: str) -> str:
    """The reply in the first property that can hold it, the other required ones as small as they may be."""
    said = _said(schema, reply)
    if said is not None:
        return said
    required = schema.get("required", list(schema["properties"]))
    lines = dict(_LINE.findall(reply))
    if len(lines) > 1 and set(required) <= set(lines) <= set(schema["properties"]):  # a line for each property
        kinds = {name: _resolved(value, root) for name, value in schema["properties"].items() if name in lines}
        return _serialised({name: _told(kind, root, lines[name]) for name, kind in kinds.items()})
    values, told = {}, False
    for name, value in schema["properties"].items():
        kind = _resolved(value, root)
        if not told and _takes(kind, "integer") and reply.isdecimal():
            values[name], told = int(reply), True
        elif not told and (kind.get("type") == "array" or _takes(kind, "string")):
            values[name], told = _told(kind, root, reply), True
        elif name in required:
            values[name] = _smallest(kind, root, reply)
    return _serialised(values)


def _said(schema: Mapping[str, Any], reply: str) -> str | None:
    """A reply that is an object of these properties already."""
    try:
        value = json.loads(reply)
    except ValueError:
        return None
    known = isinstance(value, dict) and set(schema.get("required", ())) <= set(value) <= set(schema["properties"])
    return _serialised({name: value[name] for name in schema["properties"] if name in value}) if known else None


def _told(kind: Mapping[str, Any], root: Mapping[str, Any], reply: str) -> Any:
    if kind.get("type") != "array":
        if reply == NO_ANSWER_MARKER and _takes(kind, "null"):
            return None
        options = kind.get("enum")
        if options:
            return reply if reply in options else options[0]
        return reply[: int(kind.get("maxLength", len(reply)))]
    items = _resolved(kind.get("items", {}), root)
    options = items.get("enum")
    if _takes(items, "string") or (options and all(isinstance(option, str) for option in options)):
        lines = reply.splitlines() if _NUMBERED.fullmatch(reply) else [reply]
        listed: list[Any] = [] if reply == NO_ANSWER_MARKER else lines
        if options:
            numbers = _IDENTIFIER.findall(reply)
            listed = [option for number in numbers for option in options if option.strip("[]") == number]
    else:
        listed = [int(number) for number in _IDENTIFIER.findall(reply)]
        listed = [number for number in listed if options is None or number in options]
    listed = listed[: int(kind.get("maxItems", MOST_ITEMS))]
    wanted = min(int(kind.get("minItems", 0)), MOST_ITEMS)  # more would not fit into the tokens of a reply
    return [*listed, *(_smallest(items, root, reply) for _ in range(wanted - len(listed)))]


def _smallest(kind: Mapping[str, Any], root: Mapping[str, Any], reply: str) -> Any:
    if "const" in kind or "enum" in kind:
        return kind["const"] if "const" in kind else kind["enum"][0]
    if kind.get("type") == "boolean":
        return reply != NO_ANSWER_MARKER
    if kind.get("type") in ("integer", "number"):
        return 1
    if kind.get("type") == "array":
        items = _resolved(kind.get("items", {}), root)
        return [_smallest(items, root, reply) for _ in range(min(int(kind.get("minItems", 0)), MOST_ITEMS))]
    if kind.get("type") == "object":
        return {
            name: _smallest(_resolved(value, root), root, reply) for name, value in kind.get("properties", {}).items()
        }
    return None if _takes(kind, "null") else "-" * min(int(kind.get("minLength", 0)), MOST_ITEMS)


def _takes(kind: Mapping[str, Any], name: str) -> bool:
    named = kind.get("type", [])
    branches = [*kind.get("anyOf", ()), *kind.get("oneOf", ())]
    return name in ([named] if isinstance(named, str) else named) or any(_takes(branch, name) for branch in branches)


def _resolved(kind: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(kind, Mapping):  # true and false are schemas, too
        return {}
    if "$ref" not in kind:
        return kind
    found: Any = root
    for part in str(kind["$ref"]).removeprefix("#/").split("/"):
        found = found.get(part, {})
    return found if isinstance(found, Mapping) else {}


def _serialised(value: Any) -> str:
    """JSON with the two escapes and single spaces that the automaton lets through."""
    if isinstance(value, str):
        return '"' + _CONTROL.sub(" ", value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_serialised(name)}: {_serialised(one)}" for name, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_serialised, value)) + "]"
    return json.dumps(value)


def _forms(reply: str) -> Iterator[str]:
    """The forms in which a model would try to say ``reply``."""
    numbers = _IDENTIFIER.findall(reply)
    line = " ".join(reply.split())
    yield from (reply, reply.strip(), line, json.dumps(reply, ensure_ascii=False), json.dumps(line, ensure_ascii=False))
    for separator in (" > ", ">", ", ", ",", " "):
        yield separator.join(f"[{number}]" for number in numbers)
        yield separator.join(numbers)
    for separator in (", ", ","):
        yield f"[{separator.join(numbers)}]"
    yield NO_ANSWER_MARKER


def _least(pattern: str) -> str:
    """A short text that ``pattern`` matches."""
    parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    return _walked(parser.parse(pattern))


def _walked(parsed: Any) -> str:
    said = ""
    for operation, value in parsed:
        name = str(operation)
        if name == "LITERAL":
            said += chr(value)
        elif name in ("NOT_LITERAL", "ANY"):
            said += "b" if value == ord("a") else "a"
        elif name == "IN":
            said += _member(value)
        elif name == "BRANCH":
            said += min((_walked(branch) for branch in value[1]), key=len)
        elif name == "SUBPATTERN":
            said += _walked(value[3])
        elif name.endswith("REPEAT"):
            said += _walked(value[2]) * value[0]
    return said


def _member(members: Any) -> str:
    operation, value = members[0]
    if str(operation) == "NEGATE":
        return next(sign for sign in "a 0-" if not _is_member(sign, members))
    if str(operation) == "LITERAL":
        return chr(value)
    return chr(value[0]) if str(operation) == "RANGE" else next(s for s in "0 a-" if _is_member(s, members))


def _is_member(sign: str, members: Any) -> bool:
    classes = {"DIGIT": sign.isdigit(), "SPACE": sign.isspace(), "WORD": sign.isalnum() or sign == "_"}
    for operation, value in members:
        name = str(operation)
        if name == "LITERAL" and value == ord(sign):
            return True
        if name == "RANGE" and value[0] <= ord(sign) <= value[1]:
            return True
        if name == "CATEGORY" and classes[str(value).rpartition("_")[2]] != ("NOT_" in str(value)):
            return True
    return False
