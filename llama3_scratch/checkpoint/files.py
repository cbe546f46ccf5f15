"""Write the files of a folder together: all of them take their places, or none does."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from llama3_scratch.errors import InputError, first_line, require

LOCK = ".lock"  # in a folder: there while a program writes into it
SAVING = ".saving-"  # in a folder, with random letters: new files that are not yet complete
UNFINISHED = ".unfinished"  # in a folder: complete new files that did not all take their places
FAILED_WRITES = "enforce fail", "iostream", "I/O error"  # torch.save, again, and safetensors say


@contextlib.contextmanager
def written_whole(folder):
    """Yield an empty folder to write files into; after the block they are moved into `folder`.

    All files are complete before the first one is moved; they replace those of the same names. An
    error in the block leaves `folder` as it was. So does the death of the process, until the files
    are moved; then the others remain in `.unfinished`, and `require_finished` fails until `finish`
    has moved them, which the next `written_whole` also does. Raises `InputError` if the disk is
    full, if the folder may not be written, or while another process writes into it.
    """
    folder = Path(folder)
    with locked(folder):
        finish(folder)
        for left in folder.glob(f"{SAVING}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with _reported(folder):
            new = Path(tempfile.mkdtemp(prefix=SAVING, dir=folder))
        try:
            with _reported(folder):
                yield new
                os.replace(new, folder / UNFINISHED)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        finish(folder)


def finish(folder):
    """Move the files that an interrupted `written_whole` left in `.unfinished` to their places."""
    rest = Path(folder) / UNFINISHED
    require(not rest.is_symlink(), f"{rest} is a link to another folder: remove it.")
    if rest.is_dir():
        try:
            for path in sorted(rest.iterdir()):
                os.replace(path, Path(folder) / path.name)
            rest.rmdir()
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}. {_half(folder)}") from None


def require_finished(folder):
    """Raise `InputError` if new files of a folder are still in `.unfinished`."""
    require(not os.path.lexists(Path(folder) / UNFINISHED), _half(folder))


def _half(folder):
    rest = Path(folder) / UNFINISHED
    return (
        f"{folder} may hold old files beside new ones, because a program was stopped while it "
        f"saved them. Move every file from {rest} to {folder}, replace the old one there, and "
        f"remove {rest}; or save again."
    )


@contextlib.contextmanager
def locked(folder):
    """Make the folder, and let no other process write into it during the block.

    It may be locked again inside the block by the same thread. The system unlocks it when the
    process dies. Raises `InputError` if another process has locked it, or if it may not be written.
    """
    lock = FileLock(Path(folder).absolute() / LOCK, is_singleton=True)
    outer = lock.is_locked  # by a block around this one, which unlocks it
    try:
        with _reported(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another program is writing into {folder}: wait until it ends, or name another folder."
        ) from None
    try:
        yield
    finally:
        if not outer:
            with contextlib.suppress(OSError):  # Windows removes the file when it is unlocked
                os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def _reported(folder):
    """Raise `InputError` in place of what a full disk or a lack of permission raises."""
    try:
        yield
    except (InputError, Timeout):  # the second one is an OSError, too
        raise
    except Exception as error:
        says = f"{first_line(error)}: is the disk full?"
        if isinstance(error, OSError):
            says = error.strerror or first_line(error)
        elif not any(words in says for words in FAILED_WRITES):
            raise
        raise InputError(
            f"{folder} cannot be written ({says}). Free space on its disk, or name a folder into "
            "which you may write. The files there are as they were."
        ) from None
