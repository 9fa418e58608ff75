"""Read a report: the tags, attributes and text of its page, the tables of each section, and what a terminal shows."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

from rich.console import Console

from robustsigma.report import print_table

VOID = {"meta", "img", "br", "link", "wbr"}


class Page(HTMLParser):
    """The contents of a page; refuses unbalanced tags and comments.

    Attributes:
        tags, attributes, addresses, styles: all that occur.
        text: everything that is shown.
        sections: by title, the text and the tables of each section. A table is a list of rows, a row a list of cells,
            a cell a dict with its text, its class and its title.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.addresses, self.styles, self.ids = set(), set(), set(), set(), set()
        self.text, self.pictures, self.sections = "", [], {}
        self._open, self._title, self._tables, self._cell = [], None, [], None
        self.feed(text)
        self.close()
        assert self._open == []

    def section(self, title):
        """Return the text of a section with single blanks."""
        return " ".join(self.sections[title][0].split())

    def tables(self, title):
        """Return the tables of a section."""
        return self.sections[title][1]

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name in found}
        self.ids |= {found["id"]} if "id" in found else set()
        self.styles |= {found["style"]} if "style" in found else set()
        for name in {"href", "src", "action", "content"} & set(found):
            (self.pictures if tag == "img" else []).append(found[name])
            self.addresses.add(found[name])
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._title, self._tables = "", []
        elif tag == "table":
            self._tables.append([])
        elif tag == "tr":
            self._tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = {"text": "", "class": found.get("class") or "", "title": found.get("title") or ""}
            self._tables[-1][-1].append(self._cell)
        elif tag in ("small", "wbr", "sup", "p", "li", "h3"):
            self.handle_data("" if tag == "wbr" else " ")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "h2":
            self.sections[self._title] = ["", self._tables]
        elif tag in ("td", "th"):
            self._cell = None
            self.handle_data(" ")

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] == "h2":
            self._title += data
        elif self._title in self.sections:
            self.sections[self._title][0] += data
        if self._cell is not None:
            self._cell["text"] = re.sub(r"[ \u202f\n]+", " ", self._cell["text"] + data).lstrip()

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.handle_data("")

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl):
        assert decl == "DOCTYPE html"

    def unknown_decl(self, data):
        raise AssertionError(data)


def printed(results, width=120, show=print_table):
    """Return what a terminal shows of results."""
    console = Console(width=width, record=True, file=io.StringIO())
    show(results, console)
    return console.export_text()
