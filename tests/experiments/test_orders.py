"""Which orders of the papers hold, from the values of each image."""

import json

import numpy as np
import pytest
from scripts import results, script


def _benchmark(folder, network, values):
    """Write a finished benchmark, of what its script reads: value (NaN: skipped) by method, metric and image."""
    folder.mkdir()
    titles = {"sic": ("SIC", "higher"), "deletion": ("Deletion", "lower")}
    metrics = [{"id": name, "title": title, "better": better} for name, (title, better) in titles.items()]
    found = {"dataset": {"name": "photographs"}, "models": [{"id": network}], "metrics": metrics}
    (folder / "results.json").write_text(json.dumps(found))
    lines = ["model,method,metric,image,value,skipped"]
    for (method, metric), row in values.items():
        for image, value in enumerate(row):
            lines.append(f"{network},{method},{metric},{image},{'' if value is None else value},")
    (folder / "values.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_orders_are_paired(tmp_path, capsys):
    # Means far apart from image to image, differences not: only pairs can tell.
    wide = [0.1 * image for image in range(10)]
    values = {
        ("SIGMA", "sic"): [*(v + 0.01 for v in wide), 0.9],
        ("IG", "sic"): [*wide, None],
        ("Guided IG", "sic"): [*(v + 0.02 for v in wide), 0.9],
        ("IG2", "sic"): [*(v + (-1) ** i * 0.3 for i, v in enumerate(wide)), 0.9],
        ("IDG", "deletion"): [v - 0.05 for v in wide],
        ("IG", "deletion"): wide,
        ("gradient", "deletion"): [v - 0.06 for v in wide],
    }
    first = _benchmark(tmp_path / "one", "A", values)
    second = _benchmark(tmp_path / "two", "B", {("SIGMA", "sic"): [0.5, 0.6], ("IG", "sic"): [0.7, 0.8]})
    script("orders").main([first, second, "--out", str(tmp_path)])
    found = results(tmp_path, "orders")
    told = {(o["network"], o["method"], o["metric"], o["over"]): o for o in found["orders"]}
    assert {key: order["verdict"] for key, order in told.items()} == {
        ("A", "SIGMA", "sic", "IG"): "holds",
        ("A", "SIGMA", "sic", "Guided IG"): "reversed",
        ("A", "SIGMA", "sic", "IG2"): "undecided",
        ("A", "IDG", "deletion", "IG"): "holds",  # less is better
        ("A", "IDG", "deletion", "gradient"): "reversed",
        ("B", "SIGMA", "sic", "IG"): "reversed",
    }
    assert told["A", "SIGMA", "sic", "IG"]["n"] == 10  # an image without a value is left out
    assert told["A", "IDG", "deletion", "IG"]["mean"] == pytest.approx(0.05)
    assert [o["over"] for o in found["orders"] if not o["claimed"]] == ["gradient"]
    printed = capsys.readouterr().out
    assert "| SIGMA over IG | SIC | **+0.010** | (\u22120.200) |" in printed
    assert "| SIGMA over IG2 | SIC | +0.009 |  |" in printed
    assert "SIGMA, tables 1 and 2: of 4, holds 1, undecided 1, reversed 2" in printed
    assert "IDG, table 1: of 1, holds 1, undecided 0, reversed 0" in printed

    # Judged again from the stored differences; those of earlier versions have no p-value.
    for order in found["orders"]:
        order.pop("p", None)
    (tmp_path / "old.json").write_text(json.dumps(found))
    script("orders").main([str(tmp_path / "old.json"), "--out", str(tmp_path)])
    again = results(tmp_path, "orders")
    assert [order["verdict"] for order in again["orders"]] == [order["verdict"] for order in found["orders"]]
    assert again["measured"] == [found["run"]]


def test_many_orders_are_corrected_for_their_number(tmp_path):
    rows = np.random.default_rng(0).normal(0.05, 0.2, (20, 100))  # each alone is significant or nearly so
    folders = [
        _benchmark(tmp_path / str(k), f"net{k}", {("SIGMA", "sic"): row.tolist(), ("IG", "sic"): [0.0] * 100})
        for k, row in enumerate(rows)
    ]
    script("orders").main([*folders, "--out", str(tmp_path)])
    found = results(tmp_path, "orders")["orders"]
    alone = sum(order["low"] > 0 for order in found)
    assert 0 < sum(order["verdict"] == "holds" for order in found) < alone
    assert all((order["verdict"] == "holds") == (order["p_holm"] < 0.05) for order in found)
