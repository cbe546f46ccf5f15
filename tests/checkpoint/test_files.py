"""A folder is saved whole: full disks, missing permissions, kills, planted links, two programs."""

import contextlib
import os
import random
import signal
import time

import pytest
import torch
from helpers import BYTES, PTH, SMALL, make_weights
from safetensors.torch import save_file

from llama3_scratch import Config, InputError, Tokenizer, load, save
from llama3_scratch.checkpoint.files import LOCK, SAVING, UNFINISHED, finish, locked, written_whole

resource = pytest.importorskip("resource", reason="Windows has neither limits of files nor fork")

LARGER = Tokenizer(BYTES.ranks | {b"a%d" % i: 256 + i for i in range(8)})
OTHER = Config(48, 2, 4, 2, LARGER.vocab_size, 5, 1e-5, 500000.0, 0.5)
OLD = make_weights(SMALL), SMALL, BYTES
NEW = make_weights(OTHER, seed=1), OTHER, LARGER


def contents(folder):
    """{name: bytes}, without what the lock leaves"""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


@contextlib.contextmanager
def forked(work):
    """Run `work()` in a process of its own during the block, then wait until it has ended."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)  # not the end of this test
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def found(folder):
    """Load a folder in which OLD or NEW was saved -> which one it holds; it must be whole."""
    weights, config, tokenizer = load(folder)
    saved, _, its_tokenizer = OLD if config == SMALL else NEW
    assert tokenizer.ranks == its_tokenizer.ranks and list(weights) == list(saved)
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    return config


# --- Full disks and missing permissions -----------------------------------------------------------


@contextlib.contextmanager
def full_after(n_bytes):
    """Let no file grow beyond n_bytes: the system refuses more, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_a_full_disk_gives_one_message_and_changes_nothing(tmp_path, share):
    save(tmp_path / "size", *NEW)
    size = (tmp_path / "size" / PTH).stat().st_size
    save(tmp_path / "old", *OLD)
    before = contents(tmp_path / "old")
    for folder in (tmp_path / "old", tmp_path / "new"):
        with full_after(max(0, int(share * size) - 1)), pytest.raises(InputError) as error:
            save(folder, *NEW)
        assert "is the disk full?" in str(error.value) and str(folder) in str(error.value)
        assert SAVING not in str(error.value)
    assert contents(tmp_path / "old") == before and not contents(tmp_path / "new")
    with full_after(size):  # the control
        save(tmp_path / "new", *NEW)
    assert found(tmp_path / "new") == OTHER


@pytest.mark.parametrize(("write", "says"), [
    (lambda new: save_file(NEW[0], new / "model.safetensors"), "is the disk full"),
    (lambda new: (new / "a.txt").write_bytes(bytes(9999)), r"cannot be written \(File too large\)"),
])  # fmt: skip
def test_other_writers_of_a_folder_meet_a_full_disk_in_the_same_way(tmp_path, write, says):
    with full_after(5000), pytest.raises(InputError, match=says), written_whole(tmp_path) as new:
        (new / "first").write_text("complete")
        write(new)
    assert not contents(tmp_path)
    with written_whole(tmp_path) as new:  # the control
        write(new)
    assert len(contents(tmp_path)) == 1


def test_other_errors_are_passed_on(tmp_path):
    for error in (RuntimeError("of another kind"), KeyboardInterrupt(), InputError("clear")):
        with pytest.raises(type(error)) as caught, written_whole(tmp_path) as new:
            (new / "half").write_text("half")
            raise error
        assert caught.value is error and not contents(tmp_path)


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    save(tmp_path / "old", *OLD)
    before = contents(tmp_path / "old")
    user = os.geteuid()
    for path in [tmp_path, *tmp_path.parents][:4] if user == 0 else ():
        # root may write everywhere: become `nobody` for a moment
        path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "old").chmod(0o555)
    os.seteuid(user or 65534)
    try:
        for folder in (tmp_path / "old", tmp_path / "old" / "below"):
            with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
                save(folder, *NEW)
    finally:
        os.seteuid(user)
        (tmp_path / "old").chmod(0o755)
    assert contents(tmp_path / "old") == before
    with pytest.raises(InputError, match=r"cannot be written \((File exists|Not a directory)\)"):
        save(tmp_path / "old" / PTH, *NEW)


# --- Kills ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def moved_one_by_one(folder):
    """As `written_whole`, but nothing tells that files are being moved."""
    (folder / "new").mkdir()
    yield folder / "new"
    for path in sorted((folder / "new").iterdir()):
        os.replace(path, folder / path.name)


def killed_at(folder, step, write=written_whole):
    """Save NEW over OLD in a process that dies by SIGKILL at `step`, a rename; True if it did."""
    save(folder, *OLD)
    done = folder.with_name("done")

    def dying():
        steps, replace = iter(range(step)), os.replace

        def counted(*paths):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", counted)
            patch.setattr("llama3_scratch.checkpoint.written_whole", write)
            save(folder, *NEW)
        done.touch()

    with forked(dying):
        pass
    return not done.exists()


def test_a_save_that_is_killed_at_any_rename_leaves_a_whole_folder_or_says_so(tmp_path):
    folder, results = tmp_path / "folder", []
    for step in range(9):
        if not killed_at(folder, step):
            break
        try:
            results.append(found(folder))
        except InputError as error:
            rest = folder / UNFINISHED
            assert f"Move every file from {rest} to {folder}" in str(error)
            if step % 2:  # as the message says, by hand
                for path in rest.iterdir():
                    path.replace(folder / path.name)
                rest.rmdir()
            else:
                finish(folder)
            assert found(folder) == OTHER
            results.append(None)
        save(folder, *OLD)
        assert set(contents(folder)) == {PTH, "params.json", "tokenizer.model"}
    assert results == [SMALL, None, None, None]  # of four renames the first one decides
    assert found(folder) == OTHER


def test_files_that_are_moved_one_by_one_are_mixed_by_a_kill(tmp_path):
    """The control for the test above."""
    for step in (1, 2):
        folder = tmp_path / str(step)
        assert killed_at(folder, step, moved_one_by_one)
        with pytest.raises(InputError, match="belong to different models"):
            found(folder)


@pytest.mark.thorough
def test_saves_that_are_killed_at_random_moments_leave_whole_folders(tmp_path):
    moments, results = random.Random(0), []
    save(tmp_path, *OLD)
    started = time.monotonic()
    save(tmp_path, *OLD)
    duration = time.monotonic() - started

    def saving():
        while True:
            save(tmp_path, *OLD)
            save(tmp_path, *NEW)

    for _ in range(30):
        with forked(saving) as pid:
            time.sleep(duration * moments.uniform(0.1, 5))
            os.kill(pid, signal.SIGKILL)
        try:
            results.append(found(tmp_path))
        except InputError as error:
            assert "a program was stopped while it saved them" in str(error)
            finish(tmp_path)
            results.append(found(tmp_path))
    assert {SMALL, OTHER} == set(results)
    save(tmp_path, *NEW)
    assert len(contents(tmp_path)) == 3 and found(tmp_path) == OTHER  # nothing half-written is left


def test_mapped_weights_can_be_saved_over_their_own_file(tmp_path):
    save(tmp_path, *OLD)
    weights, config, tokenizer = load(tmp_path, torch.float32)
    save(tmp_path, weights, config, tokenizer)
    assert all(torch.equal(weights[name], OLD[0][name]) for name in weights)  # still mapped
    assert found(tmp_path) == SMALL


# --- Strangers' folders, and two programs ---------------------------------------------------------


def test_planted_links_lead_nowhere(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.mkdir(), folder.mkdir()
    (victim / "precious").write_text("as it was")
    for name in (f"{PTH}.part", PTH, "params.json", "params.json.part"):
        (folder / name).symlink_to(victim / "precious")
    (folder / f"{SAVING}x").symlink_to(victim)
    save(folder, *OLD)
    assert found(folder) == SMALL and not (folder / PTH).is_symlink()
    for name in (UNFINISHED, LOCK):
        (folder / name).symlink_to(victim / "precious" if name == LOCK else victim)
        with pytest.raises(InputError, match="is a link|cannot be written"):
            save(folder, *NEW)
        (folder / name).unlink()
    assert contents(victim) == {"precious": b"as it was"}
    assert found(folder) == SMALL


def test_one_program_at_a_time_writes_into_a_folder(tmp_path):
    ready, written = os.pipe()

    def holding():
        with locked(tmp_path):
            os.write(written, b"!")
            time.sleep(60)

    with forked(holding) as pid:
        os.read(ready, 1)
        with pytest.raises(InputError, match="another program is writing into"):
            save(tmp_path, *OLD)
        os.kill(pid, signal.SIGKILL)
    with locked(tmp_path):  # the system has unlocked it; and inside a block of our own:
        save(tmp_path, *OLD)
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists() and found(tmp_path) == SMALL


@pytest.mark.parametrize("name", [
    "model.safetensors", "consolidated.01.pth", "config.json", "tokenizer.json",
    "generation_config.json", "a.gguf",
])  # fmt: skip
def test_files_that_would_be_read_with_the_new_ones_are_refused(tmp_path, name):
    save(tmp_path, *OLD)
    (tmp_path / name).write_text("of another checkpoint")
    with pytest.raises(InputError, match=rf"\({name}\): remove them, or name another folder"):
        save(tmp_path, *NEW)
    (tmp_path / name).rename(tmp_path / "README.md")  # the control: files that are not read
    save(tmp_path, *NEW)
    assert found(tmp_path) == OTHER
