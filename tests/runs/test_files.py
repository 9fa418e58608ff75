"""Files are whole or not there, whatever happens to the process or the disk."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from robustsigma.runs.directory import init_run_dir, remove_leftovers
from robustsigma.runs.files import read_arrays, read_json, write_atomically


def test_a_file_is_written_with_the_rights_that_any_new_file_has(tmp_path):
    path = write_atomically(tmp_path / "deep" / "a.bin", b"new")
    (tmp_path / "other").touch()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert [each.name for each in path.parent.iterdir()] == ["a.bin"]


def test_nobody_reads_half_of_a_file(tmp_path):
    """One thread writes, in turns, files of one letter; this one reads: never two letters, never another length."""
    path, size, stop = tmp_path / "a.bin", 1 << 20, threading.Event()
    write_atomically(path, b"a" * size)

    def write():
        letter = 0
        while not stop.is_set():
            letter = (letter + 1) % 26
            write_atomically(path, bytes([97 + letter]) * size)

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    try:
        for _ in range(100):
            content = path.read_bytes()
            assert len(content) == size
            assert len(set(content)) == 1
            seen.add(content[0])
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 1


@pytest.mark.skipif(os.name != "posix", reason="resource limits of POSIX")
def test_a_full_disk_is_told_with_the_file_and_keeps_the_old_one(tmp_path):
    """The limit of a file's size stands for the disk's: the write fails as far in, with the same kind of error."""
    import resource

    path = write_atomically(tmp_path / "cell.npz", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*cell\.npz: File too large"):
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["cell.npz"]


def test_a_folder_that_cannot_be_made_is_told_with_the_file(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=r"could not write .*taken/a\.bin"):
        write_atomically(tmp_path / "taken" / "a.bin", b"")


@pytest.mark.slow
def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    init_run_dir(tmp_path, {"a": 1})
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom robustsigma.runs.files import write_atomically\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'half')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "in" / "cell.npz")], timeout=60, check=False)
    (left,) = (tmp_path / "in").iterdir()
    assert left.read_bytes() == b"half"
    living = left.with_name(left.name.replace(left.name.rsplit(".", 2)[0].rpartition("-")[2], str(os.getpid())))
    elsewhere = left.with_name(f".cell.npz.another-{2**22 + 1}.abcdef.part")
    for path in (living, elsewhere):
        path.write_bytes(b"being written")
    assert not (tmp_path / "in" / "cell.npz").exists()
    init_run_dir(tmp_path, {"a": 1})
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted([living.name, elsewhere.name])
    assert remove_leftovers(tmp_path) == 0


def test_a_folder_of_other_settings_is_refused(tmp_path):
    init_run_dir(tmp_path, {"a": [1, {"b": 2}]})
    init_run_dir(tmp_path, {"a": [1, {"b": 2}]})
    with pytest.raises(ValueError, match=r"a\[1\]\.b = 3 \(the folder has 2\)"):
        init_run_dir(tmp_path, {"a": [1, {"b": 3}]})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"a": [1, {"b": 2}]}
    Path(tmp_path / "file").touch()
    with pytest.raises(ValueError, match="out: expected a folder"):
        init_run_dir(tmp_path / "file", {})


def _npz():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.random.default_rng(0).random(500), b=np.array("text"))
    return buffer.getvalue()


def _flipped():
    content = bytearray(_npz())
    content[500] ^= 255
    return bytes(content)


DAMAGES = {
    "empty": b"",
    "cut": _npz()[:-100],
    "beginning lost": _npz()[100:],
    "text": b"hello",
    "zeros": bytes(1000),
    "a bit": _flipped(),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_arrays_is_told_with_its_name_and_what_helps(content, tmp_path):
    path = tmp_path / "cell.npz"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cell\.npz: expected an \.npz file that is whole, got .*; delete it, and"
    ) as told:
        read_arrays(path)
    assert "pickle" not in str(told.value)


def test_a_file_of_arrays_is_read_as_it_was_written(tmp_path):
    (tmp_path / "cell.npz").write_bytes(_npz())
    found = read_arrays(tmp_path / "cell.npz")
    assert (found["a"].shape, str(found["b"])) == ((500,), "text")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b"\xff\x00", b"[1]", b"[" * 100_000])
def test_damaged_settings_are_told_and_stay(content, tmp_path):
    init_run_dir(tmp_path, {"a": 1})
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json: expected a JSON file that is whole, .*: delete the folder"):
        init_run_dir(tmp_path, {"a": 1})
    assert (tmp_path / "settings.json").read_bytes() == content
    with pytest.raises(ValueError, match=r"settings\.json: expected a JSON file that is whole, .*; delete it"):
        read_json(tmp_path / "settings.json")
