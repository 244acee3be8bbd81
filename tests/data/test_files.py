import errno
import os
import signal

import pytest
from processes import Signal, run_function

from diffusers_cg.data.files import atomic_directory, atomic_update


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_directory(path, text):
    with atomic_directory(path) as directory:
        (directory / "first").write_text(text)
        (directory / "folder").mkdir()
        (directory / "folder" / "second").write_text(text)


def complete(text):
    return {"first": text, "folder/second": text}


def write_update(path, text):
    with atomic_update(path) as directory:
        for name in ("a", "b"):
            (directory / name).mkdir()
            (directory / name / "weights").write_text(text)
        (directory / "index").write_text(text)


def test_folder_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "parent" / "result"
    with atomic_directory(path) as directory:
        (directory / "file").write_text("new")
        assert not path.exists()
    assert contents(path) == {"file": "new"}
    assert os.listdir(path.parent) == ["result"]


def test_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "result"
    write_directory(path, "old")
    (path / "extra").write_text("old")
    write_directory(path, "new")
    assert contents(path) == complete("new")
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_folder(tmp_path, error):
    path = tmp_path / "result"
    write_directory(path, "old")
    with pytest.raises(error), atomic_directory(path) as directory:
        (directory / "first").write_text("new")
        raise error
    assert contents(path) == complete("old")
    assert os.listdir(tmp_path) == ["result"]


def test_failure_leaves_nothing_where_there_was_nothing(tmp_path):
    with pytest.raises(ValueError), atomic_directory(tmp_path / "result") as directory:
        (directory / "file").write_text("new")
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    path = tmp_path / "result"
    path.mkdir()
    with atomic_directory(path, replaces="index*") as directory:  # empty
        (directory / "index.json").write_text("old")
    with atomic_directory(path, replaces="index*") as directory:
        (directory / "thesis").write_text("precious")
    with pytest.raises(FileExistsError, match="has no index"), atomic_directory(path, replaces="index*"):
        pass
    assert contents(path) == {"thesis": "precious"}


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="name a folder in it"), atomic_directory("."):
        pass
    assert os.listdir(tmp_path) == []


def test_a_file_in_its_place_is_not_touched(tmp_path):
    (tmp_path / "result").write_text("old")
    with pytest.raises(NotADirectoryError, match="result"):
        write_directory(tmp_path / "result", "new")
    assert contents(tmp_path) == {"result": "old"}


def test_killed_while_writing_leaves_the_old_folder(tmp_path):
    path, log = tmp_path / "result", tmp_path / "log"
    write_directory(path, "old")
    killed = run_function(write_directory, path, "new", log=log, signal=Signal(signal.SIGKILL, "folder/second"))
    log.unlink()
    assert killed.status == -signal.SIGKILL
    assert contents(path) == complete("old")
    assert sorted(os.listdir(tmp_path)) == [".result.partial", "result"]

    with atomic_directory(path) as directory:
        assert os.listdir(directory) == []
    assert os.listdir(tmp_path) == ["result"]


def test_killed_between_the_renames_is_put_right_by_the_next_attempt(tmp_path):
    path, log = tmp_path / "result", tmp_path / "log"
    write_directory(path, "old")
    at = Signal(signal.SIGKILL, ".result.partial", event="os.rename")
    assert run_function(write_directory, path, "new", log=log, signal=at).status == -signal.SIGKILL
    log.unlink()
    assert not path.exists()

    with pytest.raises(ValueError), atomic_directory(path):
        assert contents(path) == complete("old")
        raise ValueError
    assert contents(path) == complete("old")
    assert os.listdir(tmp_path) == ["result"]


def write_much(path):
    with atomic_directory(path) as directory:
        (directory / "first").write_bytes(bytes(100_000))


def test_full_disk_leaves_the_old_folder(tmp_path):
    path, log = tmp_path / "result", tmp_path / "log"
    write_directory(path, "old")
    ended = run_function(write_much, path, log=log, file_size_limit=10_000)
    log.unlink()
    assert ended.status == 1 and os.strerror(errno.EFBIG) in ended.output
    assert contents(path) == complete("old")
    assert os.listdir(tmp_path) == ["result"]


def test_update_replaces_entries_of_the_same_name_and_keeps_others(tmp_path):
    path = tmp_path / "result"
    write_update(path, "old")
    (path / "a" / "extra").write_text("old")
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "state").write_text("kept")
    write_update(path, "new")
    assert contents(path) == {
        "a/weights": "new",
        "b/weights": "new",
        "index": "new",
        "checkpoint/state": "kept",
    }
    assert sorted(os.listdir(path)) == ["a", "b", "checkpoint", "index"]


def test_failed_update_changes_nothing(tmp_path):
    path = tmp_path / "result"
    write_update(path, "old")
    before = contents(path)
    with pytest.raises(ValueError), atomic_update(path) as directory:
        (directory / "index").write_text("new")
        raise ValueError
    assert contents(path) == before
    assert sorted(os.listdir(path)) == ["a", "b", "index"]


def test_update_killed_midway_never_shows_the_index_before_its_folders(tmp_path):
    path, log = tmp_path / "result", tmp_path / "log"
    at = Signal(signal.SIGKILL, ".staging/index", event="os.rename")
    assert run_function(write_update, path, "new", log=log, signal=at).status == -signal.SIGKILL
    assert [(path / name / "weights").read_text() for name in ("a", "b")] == ["new", "new"]
    assert not (path / "index").exists()

    write_update(path, "newer")
    assert contents(path) == {"a/weights": "newer", "b/weights": "newer", "index": "newer"}
    assert sorted(os.listdir(path)) == ["a", "b", "index"]
