"""Documentation, docstrings of public names and report templates are in plain American English."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from test_api import PUBLIC

ROOT = Path(__file__).parents[1]
BETTER = {
    r"(?:not )?surely": "significantly",
    r"leaves? (?:zero|0) out|leaving zero out|zero lies within": "excludes zero, includes zero",
    r"cannot be told from|can be told from": "is not significantly different from",
    r"rightly|wrongly": "correctly",
    r"walks? (?:that )?arrives?|arrived at": "converge",
    r"of (?:yours|theirs|ours)|of your own(?=[.,;:)])": "your",
    r"is made anew|are made anew": "recomputed",
    r"main job": "demo",
    r"started again it goes on|goes? on where": "resumes",
    r"embedded (?:data|dataset|images)": "built-in",
    r"for less": "faster",
    r"(?:normali|recogni|optimi|randomi|initiali|summari)s(?:e[ds]?|ing|ation)": "z",
    r"(?:minimi|maximi|generali|seriali|visuali|organi)s(?:e[ds]?|ing|ation)": "z",
    r"\w*(?:colour|behaviour|neighbour|favour)\w*": "or",
    r"grey(?:scale)?|centre[ds]?|labelled|modell(?:ed|ing)|cancelled|defence|licence|whilst|analyse[ds]?": "American",
}
WORDS = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in BETTER) + r"|\d %", re.IGNORECASE)
LONGEST = 45  # words of a sentence
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "experiments" / "README.md"])
TEMPLATES = sorted((ROOT / "robustsigma" / "report" / "templates").glob("*.j2"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (*PAGES, *TEMPLATES)}
TEXTS |= {name: inspect.getdoc(item) or "" for name, item in PUBLIC.items()}


def prose(text: str) -> str:
    """Return the text without code, tables, addresses, and the marks of templates and Markdown."""
    text = re.sub(
        r"^---\n.*?^---\n|^ *(```|~~~).*?^ *\1|\{[{%#].*?[}%#]\}|<style.*?</style>", "\n\n", text, flags=re.M | re.S
    )
    text = re.sub(r"^\s*(?:\||>>>|\.\.\.).*$", "\n", text, flags=re.M)
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)|https?://\S+", " CODE ", text)
    return re.sub(r"<[^>]*>|[*_\[\]]", " ", text)


def sentences(text: str) -> list[str]:
    """Return sentences and bullets; a colon or semicolon ends one as well as a period does."""
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*#]|\d+\.|\w+:) ", prose(text))
    return [part for block in blocks for part in re.split(r"[.!?:;](?=\s)", " ".join(block.split()))]


def test_words():
    found = {name: [each.group() for each in WORDS.finditer(prose(text))] for name, text in TEXTS.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_sentences_are_short():
    """Numbers do not count, and neither do words of code."""
    every = {name: sentences(text) for name, text in TEXTS.items() if name != "CHANGELOG.md"}
    words = r"(?!CODE)[A-Za-z][\w'-]*"
    assert [(n, each) for n, found in every.items() for each in found if len(re.findall(words, each)) > LONGEST] == []


def test_the_check_finds_mistakes():
    assert WORDS.search(prose("It is surely better."))
    assert WORDS.search("normalised")
    assert not WORDS.search(prose("`normalised` is a name, and so is\n```\ncolour\n```\n"))
    assert len(sentences("One. Two: three\n\n- four\n- five")) == 5
