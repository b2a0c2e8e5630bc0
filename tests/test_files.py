"""Files: whole or not at all."""

import json
import os
import stat

import pytest
import torch

import ppl_dgm.files as files
from ppl_dgm.errors import FileError
from ppl_dgm.files import load_json, load_tensors, save_json, save_tensors, write_atomically


def test_tensors_and_notes_come_back_as_they_were(tmp_path):
    tensors = {
        "float": torch.randn(3, 2), "double": torch.randn(2).double(), "int": torch.tensor([1, 2]), "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 4), "scalar": torch.tensor(3.0), "view": torch.arange(6.0).reshape(2, 3).T, "half": torch.ones(2).bfloat16(),
    }  # fmt: skip
    save_tensors(tmp_path / "deep" / "t.safetensors", tensors, {"a": [1, None, "ü"]})
    again, notes = load_tensors(tmp_path / "deep" / "t.safetensors")
    assert notes == {"a": [1, None, "ü"]} and again.keys() == tensors.keys()
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in tensors.items())


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "t", {"whole": whole, "part": whole[2:], "same": whole})
    again, _ = load_tensors(tmp_path / "t")
    again["whole"].zero_()
    assert again["part"].tolist() == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, moment):
    path = tmp_path / "kept.json"
    save_json(path, {"old": 1})
    before = path.read_bytes()

    def stop(*args):
        raise KeyboardInterrupt

    if moment == "write":
        with pytest.raises(TypeError):
            save_json(path, {"new": object()})
    else:
        monkeypatch.setattr(files.os, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            save_json(path, {"new": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_full_disk_is_said_in_words(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    save_json(tmp_path / "kept.json", 1)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match=r"kept\.json cannot be written \(No space left on device\)"):
        save_json(tmp_path / "kept.json", 2)
    assert load_json(tmp_path / "kept.json") == 1


def test_a_file_where_a_folder_should_be(tmp_path):
    write_atomically(tmp_path / "file", b"x")
    with pytest.raises(FileError, match="cannot be written"):
        save_json(tmp_path / "file" / "inside.json", 1)
    with pytest.raises(FileError, match="cannot be read"):
        load_json(tmp_path / "file" / "inside.json")
    with pytest.raises(FileError, match="cannot be read"):
        load_json(tmp_path)


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        save_json(tmp_path / "a.json", 1)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_damaged_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.json is not a whole JSON file") as caught:
        load_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_json_is_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "a.json").write_bytes(json.dumps({"ü": "→"}, ensure_ascii=False).encode())
    assert load_json(tmp_path / "a.json") == {"ü": "→"}


def test_missing_files_are_named(tmp_path):
    for load in (load_json, load_tensors):
        with pytest.raises(FileError, match=r"there is no file .*nothing"):
            load(tmp_path / "nothing")


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_truncated_tensors_are_refused(tmp_path, keep):
    save_tensors(tmp_path / "t", {"w": torch.randn(9)})
    raw = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(raw[:keep])
    with pytest.raises(FileError, match=r"not a whole safetensors file .*restore it") as caught:
        load_tensors(tmp_path / "t")
    assert "\n" not in str(caught.value)
