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


def make_folder(path: Path, *, group_may_replace: bool = False) -> Path:
    """Make a 0700 folder, or check and close the one that is there. Returns its path without links.

    `group_may_replace` admits parents that a group can write to, as project folders of a cluster are. Raises
    ConfigError when other users could exchange or change what lies in it, OSError when it cannot be made.
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
        check_parents(path, group_may_replace=group_may_replace)
        if found.st_mode & _OTHERS:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


def check_folder(path: Path) -> None:
    """Make sure that nobody else can change what lies in a folder. Raises ConfigError, OSError when it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_owner(path, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def read_file(path: Path, *, secret: bool) -> bytes:
    """What a file holds that nobody else could change, nor read if it is `secret`.

    Raises ConfigError with the remedy, OSError for a file that cannot be read.
    """
    # without O_NONBLOCK a pipe in the file's place would be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is no regular file: replace it by one")
        if secret and found.st_mode & _OTHERS:
            raise ConfigError(f"{path} can be read by others: chmod 600 {path}, and replace it if it was exposed")
        check_owner(path, found)
        return file.read()


def check_owner(path: Path, found: os.stat_result) -> None:
    """Only this user or root may own and write it. Raises ConfigError with the remedy."""
    if found.st_uid not in (os.geteuid(), 0):
        me = os.geteuid()
        raise ConfigError(f"{path} belongs to user {found.st_uid}, not to you or root: copy it, or chown {me} {path}")
    if writable_by_others(found):
        raise ConfigError(f"{path} can be changed by others: check what is in it, then chmod go-w {path}")


def check_parents(path: Path, *, group_may_replace: bool = False) -> None:
    """No other user may be able to rename or replace `path` (absolute, without links). Raises ConfigError."""
    for parent in path.parents:
        found = parent.stat()
        open_to_others = bool(found.st_mode & stat.S_IWOTH) if group_may_replace else writable_by_others(found)
        if open_to_others and not found.st_mode & stat.S_ISVTX:
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
