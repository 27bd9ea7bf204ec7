"""Folders and files that only their owner can change: made so, and checked before anything in them is believed.

Checks are made on opened descriptors, so that nothing can be exchanged between the look and the use.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from ministream.errors import ConfigError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_folder(path: Path) -> Path:
    """Make a 0700 folder, or check and close the one that is there. Returns its path without links.

    Raises ConfigError when other users could exchange or change what lies in it, OSError when it cannot be made.
    """
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = path.parent.resolve() / path.name
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link: name the folder that it points to")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        check_owner(path, found)
        check_parents(path)
        if found.st_mode & _OTHERS:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


def check_owner(path: Path, found: os.stat_result) -> None:
    """Only this user or root may own and write it. Raises ConfigError with the remedy."""
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} belongs to user {found.st_uid}: use a file or folder of your own")
    if writable_by_others(found):
        raise ConfigError(f"{path} can be changed by others: check what is in it, then chmod go-w {path}")


def check_parents(path: Path) -> None:
    """No other user may be able to rename or replace `path` (absolute, without links). Raises ConfigError."""
    for parent in path.parents:
        found = parent.stat()
        if writable_by_others(found) and not found.st_mode & stat.S_ISVTX:
            raise ConfigError(f"{path} can be replaced by others, who can write to {parent}: choose another place")


def writable_by_others(found: os.stat_result) -> bool:
    """Whether the mode lets anybody but the owner write; a group that holds nobody else does not count."""
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
