"""Folders and files that only their owner can change: created so, and checked before their content is trusted.

Checks use open descriptors, so that nothing can be exchanged between check and use.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import stat
import tempfile
import time
from pathlib import Path

from ministream.errors import ConfigError, MachineError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_folder(path: Path, *, group_may_replace: bool = False) -> Path:
    """Create a 0700 folder, or check and restrict an existing one. Returns its path without links.

    `group_may_replace` allows group-writable parents, such as project folders of a cluster. Raises
    ConfigError when other users could exchange or change its content, OSError when it cannot be created.
    """
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = path.parent.resolve() / path.name
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link: use the folder that it points to")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        check_owner(path, found)
        check_parents(path, group_may_replace=group_may_replace)
        if found.st_mode & _OTHERS:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


def make_temporary(prefix: str, parent: str | None = None) -> Path:
    """Create a 0700 folder in `parent` (None: the temporary folder). Raises MachineError where there is no space."""
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        cause = error.strerror or error
        raise MachineError(
            f"no temporary folder can be made ({cause}): set TMPDIR to a folder on a disk with space"
        ) from error


def check_folder(path: Path) -> None:
    """Check that nobody else can change the content of a folder. Raises ConfigError, or OSError if it is no folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_owner(path, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def read_file(path: Path, *, secret: bool) -> bytes:
    """Read a file that nobody else can change, nor read if it is `secret`.

    Raises ConfigError with the remedy, OSError for a file that cannot be read.
    """
    # without O_NONBLOCK, opening a pipe in place of the file would block
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a regular file: replace it with a regular file")
        if secret and found.st_mode & _OTHERS:
            raise ConfigError(f"{path} can be read by others: chmod 600 {path}, and replace it if it was exposed")
        check_owner(path, found)
        return file.read()


def check_owner(path: Path, found: os.stat_result) -> None:
    """Check that only this user or root owns and can write it. Raises ConfigError with the remedy."""
    if found.st_uid not in (os.geteuid(), 0):
        me = os.geteuid()
        raise ConfigError(f"{path} belongs to user {found.st_uid}, not to you or root: copy it, or chown {me} {path}")
    if writable_by_others(found):
        raise ConfigError(f"{path} can be changed by others: check what is in it, then chmod go-w {path}")


def check_parents(path: Path, *, group_may_replace: bool = False) -> None:
    """Check that no other user can rename or replace `path` (absolute, without links). Raises ConfigError."""
    for parent in path.parents:
        found = parent.stat()
        open_to_others = bool(found.st_mode & stat.S_IWOTH) if group_may_replace else writable_by_others(found)
        if open_to_others and not found.st_mode & stat.S_ISVTX:
            raise ConfigError(f"{path} can be replaced by others, who can write to {parent}: choose another location")


def writable_by_others(found: os.stat_result) -> bool:
    """Whether the mode allows others than the owner to write; a group without other members does not count."""
    if found.st_mode & stat.S_IWGRP and _is_own_group(found.st_gid):
        return bool(found.st_mode & stat.S_IWOTH)
    return bool(found.st_mode & _OTHERS_WRITE)


def _is_own_group(gid: int) -> bool:
    """A user private group: it has this user's name and no other member."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


class LockedFolder:
    """A temporary 0700 folder at `path`, `prefix` and a random name in `parent`, locked while this process lives.

    Processes that were killed leave theirs behind: whoever makes one with the same prefix removes them.
    """

    # one that is just being made is not locked yet
    _SETTLED_S = 60.0

    def __init__(self, prefix: str, parent: str) -> None:
        for path in Path(parent).glob(f"{prefix}*"):
            self._remove_if_abandoned(path)
        self.path = make_temporary(prefix, parent)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks, where no folder is found to be abandoned
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove it; repeatable."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _remove_if_abandoned(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or removed meanwhile
            return
        try:
            found = os.fstat(descriptor)
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > self._SETTLED_S:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # its process lives, or there are no locks
            return
        finally:
            os.close(descriptor)
