"""The card of a model in Markdown, with the `model-index` that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from robustsigma import __version__
from robustsigma.report.text import DASH, count, interval, measure, name, number, parameters, percent, radius

_CLAIMS = (
    "Condition",
    "Norm",
    "eps",
    "Attacker knows",
    "Accuracy, %",
    "95% interval",
    "Images",
    "Forward + backward passes per image",
)


def markdown(card: dict[str, Any]) -> str:
    """Return a model card as the Hub expects it: YAML front matter, then text.

    Args:
        card: as `robustness_card` returns it.
    """
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(_body(card)) + "\n"


def _front_matter(card: dict[str, Any]) -> dict[str, Any]:
    dataset = card["dataset"].get("name", "unknown")
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": dataset, "type": dataset.lower().replace(" ", "-")},
            "metrics": [{"type": "accuracy", "name": _title(claim), "value": round(claim["accuracy"]["mean"], 6)}],
        }
        for claim in card["claims"]
    ]
    tags = ["image-classification", "adversarial-robustness"]
    return {"tags": tags, "model-index": [{"name": card["model"]["id"], "results": results}]}


def _title(claim: dict[str, Any]) -> str:
    threat = claim.get("threat") or {}
    goal = "" if threat.get("goal", "any wrong class") == "any wrong class" else f", goal: {threat['goal']}"
    ball = f" ({threat['norm']}, eps {radius(threat['eps'])}{goal})" if threat.get("eps") else ""
    return f"Accuracy {'on clean images' if claim['name'] == 'clean' else f'under {_name(claim)}'}{ball}"


def _name(claim: dict[str, Any]) -> str:
    return name(claim["name"]) if claim["attack_setting"] != "worst" else f"every attack at once ({claim['name']})"


def _body(card: dict[str, Any]) -> Iterator[str]:
    model, dataset = card["model"], card["dataset"]
    yield f"# Robustness of {model['id']}\n"
    yield f"- Model: {model.get('training') or 'unknown'}"
    classes = count(len(dataset.get("classes") or []), "class")
    yield f"- Dataset: {dataset.get('name')}, {number(dataset.get('test'))} test images, {classes}"
    for key, digest in card["weights"].items():
        training = "" if key == "given" else f", {key}"
        yield f"- SHA-256 of the weights{training}: `{digest}`"
    if card["seeds"]:
        yield f"- Trainings (seeds): {', '.join(map(str, card['seeds']))}"
    yield ""
    yield "## Accuracy\n"
    yield from _table(card["claims"]) if card["claims"] else ["No accuracy of this run can be claimed."]
    if card["withdrawn"]:
        yield "\n## Withdrawn\n"
        yield "These accuracies were measured, but a check says that they should not be believed:\n"
        for claim in card["withdrawn"]:
            reasons = " ".join(f"{flag['code']}: {flag['message']}" for flag in claim["flags"])
            yield f"- {_title(claim)}: {percent(claim['accuracy']['mean'])}%. {reasons}"
    if card.get("distances"):
        yield "\n## Distance to the nearest error\n"
        yield "Half of the images are misled by a change of at most the median distance.\n"
        yield from map(_distance, card["distances"])
    yield "\n## Parameters\n"
    for claim in (*card["claims"], *card["withdrawn"]):
        yield f"- {_name(claim)}: {parameters(claim['parameters'])}"
    if card["limitations"]:
        yield "\n## Limitations\n"
        yield from (f"- {flag['message']}" for flag in card["limitations"])
    run, hardware = card["run"], card["run"].get("hardware") or {}
    yield (
        f"\nMeasured with robustsigma {(run.get('versions') or {}).get('robustsigma', __version__)} on "
        f"{hardware.get('device', 'unknown hardware')}, {run.get('started', 'at an unknown time')}."
    )
    if run.get("command"):
        yield f"Command: `{run['command']}`"


def _distance(found: dict[str, Any]) -> str:
    median = [measure(found["median"].get(key)) for key in ("mean", "low", "high")]
    line = (
        f"- {name(found['condition'].split('/')[0])} ({parameters(found['parameters'])}): median {median[0]} in "
        f"{found['norm']} (95% interval {median[1]} to {median[2]}), mean accuracy "
        f"{percent(found['area']['mean'])}% over radii up to {measure(found['radius'])}, {number(found['n'])} images, "
        f"{number(found['passes'])} passes per image"
    )
    reasons = " ".join(f"{flag['code']}: {flag['message']}" for flag in found["flags"])
    return f"{line}. Withdrawn. {reasons}" if reasons else f"{line}."


def _table(claims: list[dict[str, Any]]) -> Iterator[str]:
    yield f"| {' | '.join(_CLAIMS)} |"
    yield "|" + " --- |" * len(_CLAIMS)
    for claim in claims:
        threat = claim.get("threat") or {}
        cells = [_name(claim), threat.get("norm") or DASH, radius(threat.get("eps"))]
        cells += [threat.get("knowledge") or DASH, percent(claim["accuracy"]["mean"])]
        cells += [
            " ".join(interval(claim["accuracy"])) or DASH,
            number(claim.get("images")),
            number(claim.get("passes")),
        ]
        yield f"| {' | '.join(cells)} |"
