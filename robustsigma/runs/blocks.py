"""Blocks of finished rows, one file each, until all of them are there and make one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from robustsigma.engine.validation import fail
from robustsigma.runs.files import read_arrays, write_arrays
from robustsigma.runs.ranks import Ranks, Shard

Rows = dict[str, np.ndarray]
ONCE = "="  # begins the name of an array that has no row for each image


class Blocks:
    """The rows of one file, kept as a folder of blocks until all rows are there.

    A block is a file named after its rows, written in one step. So any process may make any block, in any order, and
    nobody has to know of the others.

    Args:
        path: the file of all rows, `NAME.npz`. Its blocks are in the folder `NAME.parts`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.with_suffix(".parts")
        self._spans: set[tuple[int, int]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Find the blocks that are in the folder."""
        names = (path.stem.split("-") for path in self.folder.glob("*-*.npz"))
        self._spans |= {(int(start), int(stop)) for start, stop in names}

    def note(self, spans: Iterable[Sequence[int]]) -> None:
        """Count blocks as finished that other ranks wrote: a network disk may show their files later."""
        self._spans |= {(start, stop) for start, stop in spans if not self.has(start, stop)}

    def covered(self, count: int) -> np.ndarray:
        """Return for each of the first rows whether it is known to be there, (count,)."""
        found = np.full(count, self.path.is_file())
        for start, stop in self._spans:
            found[start:stop] = True
        return found

    def has(self, start: int, stop: int) -> bool:
        """Return whether all of some rows are known to be there."""
        return bool(self.covered(stop)[start:].all())

    def add(self, start: int, rows: Rows) -> None:
        """Write a block from row `start` on; arrays of another length have a name that begins with `ONCE`."""
        stop = start + next(len(values) for name, values in rows.items() if not name.startswith(ONCE))
        write_arrays(self.folder / f"{start:09}-{stop:09}.npz", _packed(rows), compress=False)
        self._spans.add((start, stop))

    def all(self) -> Rows:
        """Return all rows; an empty dict if there are none.

        A column that ends with an earlier block is shorter.
        """
        if self.path.is_file():
            return _unpacked(read_arrays(self.path))
        spans = sorted(self._spans)
        count, columns, ends = max((stop for _, stop in spans), default=0), Rows(), dict[str, int]()
        for start, stop in spans:
            for name, values in _unpacked(read_arrays(self.folder / f"{start:09}-{stop:09}.npz")).items():
                if name.startswith(ONCE):
                    columns[name] = values
                    continue
                if name not in columns:
                    columns[name] = np.zeros((count, *values.shape[1:]), values.dtype)
                columns[name][start:stop], ends[name] = values, stop
        return {name: column[: ends.get(name)] for name, column in columns.items()}

    def finish(self) -> None:
        """Make one file of all rows, and remove the blocks."""
        if not self.path.is_file():
            write_arrays(self.path, _packed(self.all()), compress=False)
        self.remove()

    def remove(self) -> None:
        """Remove the blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._spans.clear()


class BlockFiles(dict[str, Blocks]):
    """The files of several models by name, whose rows are of the same images.

    Args:
        paths: path of each file.
        count: number of rows, or None if it is unknown until the data end.
        size: rows of a block.
    """

    def __init__(self, paths: Mapping[str, Path], count: int | None, size: int) -> None:
        super().__init__({name: Blocks(path) for name, path in paths.items()})
        self.count, self.size = count, size

    def missing(self, shard: Shard | None = None) -> list[tuple[int, int]]:
        """Return the rows that some file lacks, by blocks: the first of each and that after its last one.

        Args:
            shard: the share of the blocks that is asked for, or None for all.
        """
        assert self.count is not None
        for each in self.values():
            each.refresh()
        covered = np.logical_and.reduce([each.covered(self.count) for each in self.values()])
        found = []
        for place, start in enumerate(range(0, self.count, self.size)):
            rows = start + np.flatnonzero(~covered[start : start + self.size])
            if len(rows) and (shard is None or place % shard.total == shard.number - 1):
                found.append((int(rows[0]), int(rows[-1]) + 1))
        return found

    def finish(self, ranks: Ranks, remedy: str) -> None:
        """Make one file of the blocks of each.

        Args:
            ranks: all of which make this call.
            remedy: what to run for missing blocks; ends the error message.

        Raises:
            ValueError: blocks are missing.
        """
        missing = self.missing() if self.count is not None else []
        if missing:
            start, stop = missing[0]
            told = f"{len(missing)} that are not, the first of images {start + 1} to {stop}; {remedy}"
            raise fail("blocks", "all of them to be finished", told)
        if ranks.is_main:
            for each in self.values():
                each.finish()
        ranks.barrier()
        ranks.wait_until_visible(lambda: all(each.path.is_file() for each in self.values()))


def _packed(rows: Mapping[str, np.ndarray]) -> Rows:
    """Return those of one type and shape as one array, since each costs a tenth of a millisecond to read."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, values in rows.items():
        alike.setdefault((values.dtype.str, values.shape), []).append(name)
    names = list(alike.values())
    return {
        "names": np.array(json.dumps(names)),
        **{str(k): np.stack([rows[n] for n in of]) for k, of in enumerate(names)},
    }


def _unpacked(arrays: Mapping[str, np.ndarray]) -> Rows:
    names = json.loads(str(arrays["names"]))
    return {name: values for k, of in enumerate(names) for name, values in zip(of, arrays[str(k)], strict=True)}
