"""Blocks of rows: made by anyone in any order, one file in the end."""

import re

import numpy as np
import pytest

from robustsigma.runs.blocks import BlockFiles, Blocks
from robustsigma.runs.ranks import Phases, Ranks, Shard

ROWS = {"a": np.arange(10), "curve": np.arange(30.0).reshape(10, 3), "text": np.array([f"{k:3}" for k in range(10)])}


def _add(blocks, start, stop, once=None):
    blocks.add(start, {name: values[start:stop] for name, values in ROWS.items()} | (once or {}))


@pytest.mark.parametrize("order", [(0, 4, 8), (8, 0, 4)])
def test_blocks_in_any_order_are_the_rows_in_theirs(order, tmp_path):
    path = tmp_path / "x.y.npz"
    for start in order:
        _add(Blocks(path), start, min(start + 4, 10), {f"=of {start}": np.array([start])})
    found = Blocks(path)
    assert found.has(0, 10)
    assert not found.has(0, 11)
    rows = found.all()
    for name, values in ROWS.items():
        np.testing.assert_array_equal(rows[name], values)
        assert rows[name].dtype == values.dtype
    assert {name: int(values[0]) for name, values in rows.items() if name[0] == "="} == {
        "=of 0": 0,
        "=of 4": 4,
        "=of 8": 8,
    }
    found.finish()
    found.finish()
    assert [each.name for each in tmp_path.iterdir()] == ["x.y.npz"]
    again = Blocks(path)
    assert again.has(0, 10)
    np.testing.assert_array_equal(again.all()["curve"], ROWS["curve"])


def test_columns_may_end_early_and_a_damaged_block_says_what_to_do(tmp_path):
    found = Blocks(tmp_path / "x.npz")
    assert found.all() == {}
    found.add(0, {"a": np.arange(2), "b": np.arange(2)})
    found.add(2, {"a": np.arange(2, 5)})
    rows = found.all()
    assert (rows["a"].tolist(), rows["b"].tolist()) == ([0, 1, 2, 3, 4], [0, 1])
    (tmp_path / "x.parts" / "000000002-000000005.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000005\.npz: expected an \.npz file .*; delete it, and"):
        found.all()


def test_missing_blocks_are_those_that_any_file_lacks_and_shards_divide_them(tmp_path):
    files = BlockFiles({name: tmp_path / f"{name}.npz" for name in "ab"}, 10, 4)
    assert files.missing() == [(0, 4), (4, 8), (8, 10)]
    _add(files["a"], 0, 4)
    _add(files["b"], 0, 4)
    _add(files["a"], 4, 8)
    _add(files["b"], 4, 6)  # of a smaller block
    assert files.missing() == [(6, 8), (8, 10)]
    shards = [files.missing(Shard(number, 3)) for number in (1, 2, 3)]
    assert shards == [[], [(6, 8)], [(8, 10)]]
    with pytest.raises(ValueError, match=r"blocks: expected all .* 2 that are not, the first of images 7 to 8; run x"):
        files.finish(Ranks(), "run x")
    for name in "ab":
        _add(files[name], 6, 10)
    files.finish(Ranks(), "")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    assert BlockFiles({"a": tmp_path / "a.npz"}, 10, 3).missing() == []


@pytest.mark.parametrize("text", ["", "3", "0/0", "4/3", "-1/3", "1/x", "1/2/3"])
def test_a_shard_is_one_of_so_many(text):
    assert Shard.parse("3/8") == (3, 8)
    assert Shard.parse("0/8") == (0, 8)
    with pytest.raises(ValueError, match=rf"^shard: expected i/n .* got '{re.escape(text)}'"):
        Shard.parse(text)


def test_parts_of_a_run():
    assert Phases.of_shard(Shard(0, 2), "x")[:3] == (True, False, False)
    assert Phases.of_shard(Shard(2, 2), "x")[:3] == (False, True, False)
    assert Phases.of_report("x")[:3] == (False, False, True)
