"""Names of files, classes, methods and settings are text wherever a report shows them, and nothing else.

The page of a hostile result has no tag, no attribute and no address that the page of a harmless one has not.
"""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from page_reader import Page, printed

from robustsigma.report import curves, gallery, page, scatter
from robustsigma.report.canvas import draw_table, label, png, styled
from robustsigma.report.explanation import draw_explanation
from robustsigma.report.robustness import accuracy_table

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
# Words that the report chooses by, and dictionaries whose keys people choose.
CHOSEN = {"better", "kind"}
WORDS = {"attack_setting", "protocol", "verdict", "center", "group", "by", "held_out"}
FREE = {"skipped", "passed_over", "settings", "versions", "hardware", "parameters", "walk"}
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def hostile(value, payload, kept=CHOSEN, key=None):
    """Return a result with a payload after every string but a few; equal strings stay equal."""
    if isinstance(value, dict):
        return {
            (name + payload if key in FREE else name): part if name in kept else hostile(part, payload, kept, name)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [hostile(part, payload, kept, key) for part in value]
    return value + payload if isinstance(value, str) else value


@pytest.fixture
def two_regimes(swept):
    """Return a result of two regimes, whose page is soon rendered."""
    kept = {"base", "sigma/retrain"}
    found = {
        key: [entry for entry in value if entry.get("regime", "base") in kept]
        for key, value in swept.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    regimes = [regime for regime in swept["regimes"] if regime["id"] in kept]
    found["cells"][5]["flags"] = [{"code": "R6", "message": "the attack has not settled"}]
    return {**swept, **found, "regimes": regimes, "sweep": swept["sweep"][:1]}  # fmt: skip


@pytest.fixture(params=["robustness", "attribution"])
def case(request, two_regimes, scores_only):
    """Return the function that renders a page, and the result that it renders."""
    robust = request.param == "robustness"
    return (page.robustness_page, two_regimes) if robust else (page.attribution_page, scores_only)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [CHOSEN, CHOSEN | WORDS], ids=["every word", "known words"])
@pytest.mark.parametrize("payload", [*PAYLOADS.values(), "".join(PAYLOADS.values())], ids=[*PAYLOADS, "all"])
def test_nothing_that_people_name_becomes_part_of_a_page(case, payload, kept):
    render, result = case
    pictures = dict.fromkeys(("curves", "sweep", "examples", "path", "explanations", "attribution_cost"), b"png")
    harmless = Page(render(result, pictures))
    shown = render(hostile(result, payload, kept), pictures)
    shown.encode("utf-8")
    assert not HIDDEN.search(shown)
    found = Page(shown)
    assert found.tags <= {*harmless.tags, "wbr"}
    assert found.attributes <= harmless.attributes
    assert all(
        re.fullmatch(r"#[\w-]+|data:(image/png|text/csv|application/json);base64,[\w+/=]+", each)
        for each in found.addresses - harmless.addresses
    )
    assert all(re.fullmatch(r"[a-z-]+:#?[\w.()-]+(; ?[a-z-]+:#?[\w.()-]+)*;?", each) for each in found.styles)
    wanted, text = (re.sub("[^\x21-\x7e]", "", each) for each in (payload, found.text))
    assert wanted in text, "it is shown as it is, not left out"


def test_a_page_needs_no_network(case):
    render, result = case
    result["cells"][0]["flags"] = [{"code": "X", "message": "a flag"}]
    shown = render(result, dict.fromkeys(("curves", "sweep", "examples", "attribution_cost"), b"png"))
    found = Page(shown)
    assert not {"link", "iframe", "object", "base"} & found.tags
    links = {address for address in found.addresses if address.startswith("#")}
    assert links
    assert {link[1:] for link in links} <= found.ids
    # Only the page's own script may run: the policy names its hash.
    (script,) = re.findall("<script>(.*?)</script>", shown, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert all(a.startswith("data:") or a in {policy, "width=device-width, initial-scale=1"}
               for a in found.addresses - links)  # fmt: skip
    assert policy in found.addresses
    assert not [word for word in ("://", "@import", "url(") if word in shown]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_figures_draw_any_name(payload, arrays):
    pair = {"class": payload, "index": 0, "confidence": 0.5}
    made = {"method": payload, "converged": True, "sample_predicted": pair, "sample_explained": pair}
    entry = {"predicted": [pair] * 3, "explained": pair, "contrast": payload, "maps": [made]}
    image = arrays["explained"][0]
    found = draw_explanation(entry, image, [arrays["explanations"][0, :1]], [image], {})
    assert found.startswith(b"\x89PNG")
    assert not HIDDEN.search(label(payload))
    assert len(label(payload)) <= 24


@pytest.mark.slow
def test_every_figure_draws_names_that_look_like_mathematics(two_regimes, arrays, scores_only, few_methods):
    hostile_result = hostile(two_regimes, PAYLOADS["mathematics"], CHOSEN | WORDS)
    scores_only.update({key: few_methods[0][key] for key in ("curves", "sanity", "cells")})
    scores = hostile(scores_only, PAYLOADS["mathematics"], CHOSEN | WORDS | {"metric"})
    for metric, harmless in zip(scores["metrics"], scores_only["metrics"], strict=True):
        metric["id"] = harmless["id"]
    model = scores["models"][0]["id"]
    with styled():
        for figure in (
            draw_table(accuracy_table(hostile_result)), curves.accuracy_over_eps(hostile_result),
            curves.sweep(hostile_result), gallery.examples(hostile_result, arrays["examples"]),
            curves.metric_curves(scores, model), scatter.cost(scores, model), scatter.sanity(scores, model),
        ):  # fmt: skip
            assert png(figure).startswith(b"\x89PNG")


def test_nothing_steers_the_terminal(two_regimes, scores_only):
    for results in (two_regimes, scores_only):
        assert not HIDDEN.search(printed(hostile(results, PAYLOADS["control characters"]), 300))
