"""Names of files, classes, methods and settings are text wherever a report shows them, and nothing else.

The page of a hostile result has no tag, no attribute and no address that the page of a harmless one has not.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from robustsigma.report import html as robustness
from robustsigma.report.attribution import html as attribution
from robustsigma.report.canvas import label
from robustsigma.report.overlay import draw_overlay

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "end of an attribute": '" onmouseover="alert(1)" x="',
    "end of a single quote": "' onload='alert(1)",
    "end of a tag": '"><img src=x onerror=alert(1)><b title="',
    "address": "javascript:alert(1)",
    "entities": "&lt;script&gt;&#x3c;svg onload=alert(1)&#62;&amp;",
    "template": "{{ 7 * 7 }}{% raw %}{# #}",
    "comment": "--><!-- ]]> <![CDATA[",
    "end of style": "</style></title></svg><style>*{display:none}</style>",
    "control characters": "\x00\x07\x1b[2J\x7f\x9b\r",
    "direction": "\u202egnp.exe\u202c\u2066",
    "half a character": "\ud800\udcff",
    "mathematics": "$x^{$ \\frac{ \\$",
    "long": "<b>" * 100,
}
# Words that the report itself chooses from, and dictionaries whose keys people choose.
CHOSEN = {"reading", "protocol", "better", "verdict", "kind", "centre", "started"}
FREE = {"skipped", "passed_over", "settings", "versions", "hardware", "parameters", "walk"}
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Page(HTMLParser):
    """The tags and attributes of a page, its addresses, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.addresses, self.styles, self.text = set(), set(), set(), set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.addresses |= {value for name, value in attrs if name in ("href", "src", "action", "content")}
        self.styles |= {value for name, value in attrs if name == "style"}

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl):
        assert decl == "DOCTYPE html"

    def unknown_decl(self, data):
        raise AssertionError(data)


def hostile(value, payload, key=None):
    """Return a result with a payload after every string that people choose; equal strings stay equal."""
    if isinstance(value, dict):
        return {
            (name + payload if key in FREE else name): part if name in CHOSEN else hostile(part, payload, name)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [hostile(part, payload, key) for part in value]
    return value + payload if isinstance(value, str) else value


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("kind", ["robustness", "attribution"])
def test_nothing_that_people_name_becomes_part_of_a_page(kind, payload, results, scores_only):
    module, result = (robustness, results) if kind == "robustness" else (attribution, scores_only)
    pictures = dict.fromkeys(robustness.FIGURES, b"png")
    harmless = Page(module.render(result, pictures))
    text = module.render(hostile(result, payload), pictures)
    text.encode("utf-8")
    assert not HIDDEN.search(text)
    page = Page(text)
    assert page.tags <= {*harmless.tags, "wbr"}
    assert page.attributes <= harmless.attributes
    assert all(
        re.fullmatch(r"#[\w-]+|data:image/png;base64,[\w+/=]+", each) for each in page.addresses - harmless.addresses
    )
    assert all(re.fullmatch(r"[a-z-]+:#?[\w.()-]+(; ?[a-z-]+:#?[\w.()-]+)*;?", each) for each in page.styles)
    shown, found = (re.sub("[^\x21-\x7e]", "", each) for each in (payload, page.text))
    assert shown in found, "it is shown as it is, not left out"


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_figures_draw_any_name(payload, arrays):
    assert draw_overlay(arrays["explained"][0], arrays["explanations"][0, 0], payload, payload).startswith(b"\x89PNG")
    assert not HIDDEN.search(label(payload))
    assert len(label(payload)) <= 24
