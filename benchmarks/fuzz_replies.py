"""Random replies through the parsers: how many of them give evidence that they do not hold.

usage: fuzz_replies.py [--count N] [--seed S] [--show N]

Every reply is put together from pieces: what a model was asked for, echoes, forms, drafts, refusals, half numbers,
words of its own, and around them special tokens, roles, wrappers, and thoughts that are closed or not. Whoever puts it
together knows what it says, and that is the oracle: it shares no code with the parsers.

*Invented* is evidence that the reply does not hold: a snippet that was not copied, or begins or ends elsewhere than a
word or a number of the passage, an order beside another one, a verdict or a grade that was not given. *Lost* is a reply
with nothing but decorations around what was asked for that was not read. Exits with 1 where there is any of either.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from arhn_datasets.annotators.packing import lines_of
from arhn_datasets.annotators.replies import parse_grade, parse_ranking, parse_snippet, parse_verdicts

COUNT = 300_000

# -- what stands around ---------------------------------------------------------------------------------------------

THINKING = [
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think", "Think")),
    *(("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|START_THINKING|>", "<|END_THINKING|>")),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe ", "assistantfinal"),
]
ENDINGS = [
    "<|eot_id|>",
    "<|im_end|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "\x00",
    "\n",
    "[/INST]",
]
OPENINGS = ["<s>", "\n\n", "<bos>", "<|start_header_id|>assistant<|end_header_id|>\n\n", "assistant\n\n", "\ufeff"]
WRAPPERS = ["{}"] * 6 + ["```\n{}\n```", "<answer>{}</answer>", "<answer>\n{}\n</answer>"]


class Drawn(NamedTuple):
    """A reply, and what it says."""

    text: str
    says: Any = None  # None: no evidence of any kind
    plain: bool = False  # nothing but decorations around what was asked for


def decorated(draw: random.Random, drawn: Drawn, thoughts: Callable[[], str]) -> Drawn:
    """The same with tokens, wrappers and thoughts around it; one that is left open takes everything."""
    text = draw.choice(WRAPPERS).format(drawn.text)
    text += "".join(draw.choices(ENDINGS, k=draw.choice((0, 0, 1, 2))))
    if draw.random() < 0.3:
        opening, closing = draw.choice(THINKING)
        if draw.random() < 0.3:
            return Drawn(text=f"{opening}{thoughts()} {text}")
        return Drawn(text=f"{opening}{thoughts()}{closing}{text}", says=drawn.says, plain=drawn.plain)
    return Drawn(text=draw.choice(("", "", *OPENINGS)) + text, says=drawn.says, plain=drawn.plain)


# -- snippets ---------------------------------------------------------------------------------------------------------

NOUNS = [
    "tower",
    "tunnel",
    "Velden",
    "Marl",
    "bridge",
    "orchard",
    "letter",
    "council",
    "ferry",
    "copper",
    "Ost",
    "queen",
]
VERBS = ["stands near", "was built before", "is longer than", "has been closed with", "says nothing of", "costs"]
LINKS = ["the", "of the", "and", "in", "with a", "None of", "no answer to", "not found in", "unknown to"]
REFUSALS = [
    *(
        "NO_ANSWER",
        "NO_ANSWER.",
        "no_answer",
        "None",
        "none.",
        "No answer",
        "N/A",
        "n.a.",
        "null",
        "Unknown",
        "Not found",
    ),
    *("Answer: None", '{"snippet": "None"}', '{"snippet": null}', "**None**", "- None", "(none)", '"No answer."'),
    *("The passage does not state it.", "There is no answer in the passage.", "The text does not mention that."),
    *("I cannot find an answer.", "No answer is given in the passage.", "NO_ANSWER: it is about something else."),
]
LABELS = ["{}", "{}", "{}", '"{}"', "“{}”", "**{}**", "Answer: {}", "Snippet: {}", "- {}", "> {}", "Here it is:\n{}"]
COMMON = ["The", "the", "of", "None", "is", "It is", "of the", "letter", "tower", "yes", "No", "4"]


def number(draw: random.Random) -> str:
    """A number in one of the ways in which people write them, none of which is a part of another."""
    a, b, c = (draw.randrange(100, 1000) for _ in range(3))
    forms = (
        f"{a % 9 + 1},{b}",
        f"{a}.{b}.{c}",
        f"{a % 90 + 10} {b}",
        f"{a}.{b % 10}",
        f"-{a}",
        f"{a % 24}:{b % 50 + 10}",
    )
    return draw.choice((*forms, f"{a}/{b}", f"19{b % 90 + 10}", f"{a}"))


class Told:
    """A passage of random words and numbers, with the places where one of them begins or ends."""

    def __init__(self, draw: random.Random) -> None:
        self.sentences = [
            [
                draw.choice(("The", "A", "None of the", "Unknown to all, the")),
                *(
                    draw.choice(NOUNS),
                    draw.choice(VERBS),
                    number(draw),
                    "metres",
                    draw.choice(LINKS),
                    draw.choice(NOUNS),
                ),
            ]
            for _ in range(draw.randint(1, 4))
        ]
        text = " ".join(self.sentence(at) for at in range(len(self.sentences)))
        title = " ".join(draw.choices(NOUNS, k=2)).capitalize() if draw.random() < 0.5 else ""
        self.passage = {"docid": "1", "title": title, "text": text}
        self.starts, self.ends, at = set[int](), set[int](), 0
        for words in self.sentences:
            for word in words:
                self.starts.add(at)
                self.ends.add(at + len(word))
                at += len(word) + 1
            self.ends.add(at)  # with the stop
            at += 1

    def sentence(self, at: int) -> str:
        """One of the sentences."""
        return " ".join(self.sentences[at]) + "."

    def read(self, reply: str) -> Any:
        """What the parser makes of a reply: the snippet, False for no answer, None for no evidence."""
        found = parse_snippet(reply, self.passage)
        if found.status == "no_answer":
            return False
        if found.status != "grounded":
            return None
        whole = found.field == "text" and found.start in self.starts and found.end in self.ends
        return found.snippet if whole else f"{found.snippet!r}, which splits a word or a number"


def snippet_reply(draw: random.Random) -> tuple[Drawn, Callable[[str], Any]]:
    """A reply to a snippet prompt, and how it is read."""
    told = Told(draw)
    title, words = told.passage["title"], draw.choice(told.sentences)
    first = draw.randrange(0, len(words) - 3)
    run = words[first : draw.randint(first + 4, len(words))]
    good, sentence = " ".join(run), told.sentence(draw.randrange(len(told.sentences)))
    kind = draw.choice(("run", "run", "sentence", "refusal", "title", "half", "common", "both", "joined", "other"))
    drawn = Drawn(text="tin")
    if kind in ("run", "sentence"):
        good = good if kind == "run" else sentence
        drawn = Drawn(text=draw.choice(LABELS).format(good), says=good, plain=True)
    elif kind == "refusal":
        drawn = Drawn(text=draw.choice(REFUSALS), says=False, plain=True)
    elif kind == "title" and title:
        between = draw.choice(("{}\n\n{}", "{}: {}", "Title: {}\n\n{}", "**{}**\n{}", "{} - {}"))
        drawn = Drawn(text=between.format(title, sentence), says=sentence, plain=True)
    elif kind == "half":
        whole = next(word for word in words if any(map(str.isdigit, word)))
        cut = draw.randrange(1, len(whole))
        left, right = whole[:cut].strip(), whole[cut:].strip()
        if not any({left, right} & set(others) for others in told.sentences):  # or another number is just this
            drawn = Drawn(text=draw.choice((left, right, f"{right} metres")))
    elif kind == "common":
        word = draw.choice(COMMON)
        drawn = Drawn(text=word, says=False if word == "None" else None)
    elif kind == "both":
        refusal = draw.choice(REFUSALS)
        drawn = Drawn(
            text=draw.choice((f"{refusal}\n{sentence}", f"{sentence}\n{refusal}", f"{sentence} or {refusal}"))
        )
    elif kind == "joined":
        drawn = Drawn(text=f"{good} ... {sentence}")
    elif "metres" in good:
        drawn = Drawn(text=good.replace("metres", draw.choice(("miles", "yards", "years"))))
    return decorated(draw, drawn, lambda: draw.choice(("hm", sentence, "NO_ANSWER", "None"))), told.read


# -- rankings ---------------------------------------------------------------------------------------------------------

ORDERS = [
    "{}",
    "{}",
    "Ranking: {}",
    "My ranking:\n{}",
    "**{}**",
    "Best first: {}.",
    "\\boxed{{{}}}",
    "This decides it.\n{}",
]
ECHOES = [
    *(
        "The candidates were given as {}",
        "The candidates were given as:\n{}",
        "In this form: {}",
        "Form: {}",
        "{}",
        "{}",
    ),
    *("Reply with one line in this form: {}", "For example, {} means that the first is best.", "Given order: {}"),
    *("\\boxed{{{}}}", "<answer>{}</answer>", "```\n{}\n```", "Ranking {} is right.", "Original:\n{}", "Or {}?"),
]
ALONE = [echo for echo in ECHOES if not echo.startswith(("{}", "\\", "<", "`"))]


def chain(draw: random.Random, order: list[int]) -> str:
    """An order as a chain in brackets, the form that was asked for."""
    return draw.choice((" > ", ">", " >  ")).join(f"[{one}]" for one in order)


def any_chain(draw: random.Random, order: list[int]) -> str:
    """An order in any form."""
    bare, bracketed = [str(one) for one in order], [f"[{one}]" for one in order]
    forms = (" > ".join(bracketed), ", ".join(bracketed), str(order), " > ".join(bare), "\n".join(bracketed))
    return draw.choice(
        (*forms, " > ".join(f"Passage {one}" for one in bare), " → ".join(bracketed), " ".join(bracketed))
    )


def ranking_reply(draw: random.Random) -> tuple[Drawn, Callable[[str], Any]]:
    """A reply to a ranking prompt, and how it is read."""
    count = draw.randint(2, 6)
    mine, other = (draw.sample(range(1, count + 1), count) for _ in range(2))
    other = other[: draw.randint(2, count)]
    kind = draw.choice(("plain", "plain", "json", "list", "partial", "two", "two", "two", "echo", "prose", "wild"))
    drawn = Drawn(text=draw.choice(ORDERS).format(chain(draw, mine)), says=mine, plain=True)
    if kind == "json":
        drawn = drawn._replace(text=draw.choice((json.dumps({"ranking": mine}), str(mine))))
    elif kind == "list":
        drawn = drawn._replace(text=draw.choice((", ", "\n", " ", "; ")).join(f"[{one}]" for one in mine))
    elif kind == "partial":
        drawn = Drawn(text=draw.choice(ORDERS).format(chain(draw, other)), says=other, plain=True)
    elif kind == "two":
        left = iter(mine)
        agrees = all(one in left for one in other)
        both = [drawn.text, draw.choice(ECHOES).format(any_chain(draw, other))]
        draw.shuffle(both)
        drawn = Drawn(text=draw.choice(("\n", "\n\n", " ")).join(both), says=mine if agrees else None)
    elif kind == "echo":
        drawn = Drawn(text=draw.choice(ALONE).format(chain(draw, mine)))
    elif kind == "prose":
        drawn = Drawn(text=f"Passage [{mine[0]}] is better than [{mine[1]}].")
    elif kind == "wild":
        wild = draw.choice((count + 1, 0, 99999))
        drawn = Drawn(text=chain(draw, [wild, *mine]), says=mine)

    def read(reply: str) -> Any:
        return [place + 1 for tier in parse_ranking(reply, count).tiers for place in tier] or None

    return decorated(
        draw, drawn, lambda: draw.choice(("hm", any_chain(draw, other), "As given: " + chain(draw, other)))
    ), read


# -- verdicts and grades ----------------------------------------------------------------------------------------------


def lists(draw: random.Random, groups: list[str]) -> str:
    """The two lists of a reply to a prompt for verdicts."""
    numbers = {name: [at for at, of in enumerate(groups, 1) if of == name] for name in ("better", "worse")}
    if draw.random() < 0.2:
        return json.dumps(numbers)
    return "\n".join(f"{name}: {', '.join(f'[{at}]' for at in of) or 'none'}" for name, of in numbers.items())


def verdict_reply(draw: random.Random) -> tuple[Drawn, Callable[[str], Any]]:
    """A reply to a prompt for verdicts, and how it is read."""
    groups, others = (draw.choices(("better", "worse", "no_match"), k=draw.randint(2, 5)) for _ in range(2))
    said, other = lists(draw, groups), lists(draw, others)
    kind = draw.choice(("plain", "plain", "two", "prose", "group"))
    drawn = Drawn(text=said, says=groups, plain=True)
    if kind == "two":
        drawn = Drawn(text=f"{other}\n{said}", says=groups if said == other else None)
    elif kind == "prose":
        drawn = Drawn(text=draw.choice(("Sure:\n{}", "{}\nI am sure.", "In this form: {}", "not {}")).format(said))
    elif kind == "group":
        drawn = Drawn(
            text=draw.choice(("better: [1]", "worse: none", "better: 1\nworse: 2", "better: [1]\nbetter: [2]"))
        )

    def read(reply: str) -> Any:
        found = [one.verdict for one in parse_verdicts(reply, len(groups))]
        return None if set(found) == {None} else found

    return decorated(draw, drawn, lambda: draw.choice(("hm", other))), read


def grade_reply(draw: random.Random) -> tuple[Drawn, Callable[[str], Any]]:
    """A reply to a prompt for a grade, and how it is read."""
    grade = draw.randrange(4)
    good = ("{}", "{}.", "**{}**", "Grade: {}", "[{}]", '{{"grade": {}}}', "\\boxed{{{}}}")
    bad = (
        "{} or 1",
        "The grade is {}",
        "{}/3",
        "{}.5",
        "-{}",
        "1{}",
        "{}\n2",
        "Grade: {}\nGrade: 1",
        "4",
        "{} because",
    )
    plain = draw.random() < 0.6
    text = draw.choice(good if plain else bad).format(grade)
    drawn = Drawn(text=text, says=grade if plain else None, plain=plain)
    return decorated(draw, drawn, lambda: draw.choice(("hm", "3", "Grade: 1"))), lambda reply: parse_grade(reply).grade


# -- several passages in a request ----------------------------------------------------------------------------------


def numbered(texts: Sequence[str], first: int = 1) -> list[str]:
    """The lines that are asked for."""
    return [f"[{at}] {text}" for at, text in enumerate(texts, first)]


def packed_reply(draw: random.Random) -> tuple[Drawn, Callable[[str], Any]]:
    """A reply to a prompt for several passages, and how it is read: what each says, None where it is asked alone."""
    told = [Told(draw) for _ in range(draw.randint(2, 6))]
    says: list[Any] = [
        False if draw.random() < 0.5 else one.sentence(draw.randrange(len(one.sentences))) for one in told
    ]
    texts = [said or "NO_ANSWER" for said in says]
    lines, prose = numbered(texts), "I did not find it in all of them."
    own = [said and sum(bool(one.read(said)) for one in told) == 1 for said in says]  # and in no other passage
    at, other = draw.sample(range(len(told)), 2)
    gone = [None if one == at else said for one, said in enumerate(says)]
    swapped = [texts[{at: other, other: at}.get(one, one)] for one in range(len(texts))]
    again = draw.choice((lines[at], f"[{at + 1}] NO_ANSWER"))
    forms: dict[str, tuple[list[str], Any]] = {
        "missing": ([*lines[:at], *lines[at + 1 :]], gone),
        "doubled": ([*lines[: at + 1], again, *lines[at + 1 :]], gone),
        "zero": (numbered(texts, 0), None),
        "prose": (draw.choice(([prose, *lines], [*lines, prose], [*lines[:at], prose, *lines[at:]])), None),
        "wild": ([*lines, f"[{len(lines) + draw.randint(1, 9)}] NO_ANSWER"], None),
        "json": ([json.dumps({"lines": lines})], says),
        "other json": ([json.dumps(draw.choice(({"lines": texts}, texts, dict(enumerate(texts)))))], None),
        "swapped": (numbered(swapped), None),
        "moved": (numbered([*texts[:at], *texts[at + 1 :]]), None),
    }
    kind = draw.choice(("plain", "plain", *forms))
    # Of refusals alone nothing tells where they belong.
    unclear = (kind == "swapped" and not (own[at] or own[other])) or (kind == "moved" and not any(own[at + 1 :]))
    drawn = Drawn(text="\n".join(lines), says=says, plain=True)
    if kind != "plain" and not unclear:
        said = forms[kind][1]
        drawn = Drawn(
            text="\n".join(forms[kind][0]), says=said if said and any(one is not None for one in said) else None
        )

    def read(reply: str) -> Any:
        found = lines_of(reply, [one.passage for one in told])
        given = [one.read(line) if line else None for one, line in zip(told, found, strict=True)]
        return None if all(one is None for one in given) else given

    return decorated(draw, drawn, lambda: draw.choice(("hm", lines[at], "\n".join(lines)))), read


KINDS = {
    "snippets": snippet_reply,
    "rankings": ranking_reply,
    "verdicts": verdict_reply,
    "grades": grade_reply,
    "packed": packed_reply,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where anything was invented or lost."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"replies; default: {COUNT:,}")
    made.add_argument("--seed", type=int, metavar="S", help="default: another one each time")
    made.add_argument("--show", type=int, default=5, metavar="N", help="most faults of each kind that are printed")
    options = made.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    draw, counts, started = random.Random(seed), Counter[tuple[str, str]](), time.monotonic()
    for at in range(options.count):
        name = tuple(KINDS)[at % len(KINDS)]
        drawn, read = KINDS[name](draw)
        found = read(drawn.text)
        counts[name, "replies"] += 1
        counts[name, "evidence"] += found is not None
        counts[name, "plain"] += drawn.plain
        # A refusal that was read as no evidence at all moves nothing either.
        lost = drawn.plain and found != drawn.says and not (drawn.says is False and found is None)
        fault = "invented" if found is not None and found != drawn.says else "lost" if lost else ""
        if fault:
            counts[name, fault] += 1
            if counts[name, fault] <= options.show:
                print(f"{fault} ({name}): {drawn.text!r} says {drawn.says!r}, and was read as {found!r}")
    columns = ("replies", "evidence", "plain", "lost", "invented")
    print(f"seed {seed}, {time.monotonic() - started:.0f} seconds")
    print("".join([f"{'':<10}", *(f"{column:>10}" for column in columns)]))
    for name in KINDS:
        print("".join([f"{name:<10}", *(f"{counts[name, column]:>10,}" for column in columns)]))
    return int(any(counts[name, fault] for name in KINDS for fault in ("invented", "lost")))


if __name__ == "__main__":
    sys.exit(main())
