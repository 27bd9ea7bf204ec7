"""A program of the system as a data server: its configuration and secrets exist in memory only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from ministream import log
from ministream.errors import TunnelError
from ministream.tunnel.proxy import Setup
from ministream.tunnel.proxy._launch import FIRST_FILE
from ministream.tunnel.proxy._log_budget import LogBudget
from ministream.tunnel.refusal import Code, RefusedError

_MODULE = "ministream.tunnel.proxy._launch"
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_START_S = 15.0
_END_S = 5.0
_LAST_WORDS = 3

_LOG = log.get(__name__)


class Program:
    """A running program; `start` returns when it reports that it serves."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        *,
        ready: str,
        hear: Callable[[str], None],
        fail: Callable[[str], None],
    ) -> None:
        self._name = name
        self._process = process
        self._ready_text = ready
        self._hear = hear
        self._fail = fail
        self._closing = False
        self._ready = asyncio.Event()
        self._said: deque[str] = deque(maxlen=_LAST_WORDS)
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        setup: Setup,
        name: str,
        arguments: Sequence[str],
        *,
        files: Sequence[bytes],
        ready: str,
        hear: Callable[[str], None],
    ) -> Self:
        """Start `name` with the session's listeners; `files[i]` is at `path(i)` for it, `ready` in its output
        means that it serves, and `hear` gets every line of it.

        Raises TunnelError with the program's own words when it does not.
        """
        memories = [_memory(content) for content in files]
        listeners = [listener.fileno() for listener in setup.listeners]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _MODULE, str(os.getpid())),
                *(",".join(map(str, fds)) for fds in (listeners, memories)),
                *(find(name), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[*listeners, *memories],
                process_group=0,  # see _process.py
            )
        except OSError as error:
            raise TunnelError(f"{name} could not be started: {error.strerror}") from error
        finally:
            for memory in memories:
                os.close(memory)
        self = cls(name, process, ready=ready, hear=hear, fail=setup.on_failure)
        self._watcher = asyncio.create_task(self._watch())
        try:
            await self._wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End it and reap it."""
        self._closing = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._watcher is not None:
            await self._watcher

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await self._ready.wait()
        except TimeoutError:
            raise TunnelError(f"{self._name} is not ready after {_START_S:g} s: {self._last_words()}") from None
        if self._process.returncode is not None:
            raise TunnelError(f"{self._name} ended during start-up: {self._last_words()}")

    async def _watch(self) -> None:
        """Handle the program's end, expected or not."""
        reading = asyncio.create_task(self._read())
        await _ended(self._process.pid)
        # Workers that outlive a killed master would keep the ports, and the output for which wait() waits too.
        self._kill_group()
        status = await self._process.wait()
        await reading
        if self._ready.is_set() and not self._closing:
            self._closing = True
            self._fail(f"{self._name} ended by itself (status {status}): {self._last_words()}")
        self._ready.set()

    async def _read(self) -> None:
        """Drain the output, so that the program never blocks on it."""
        assert self._process.stdout is not None
        budget = LogBudget(_LOG, f"{self._name} {self._process.pid}")
        while line := await self._process.stdout.readline():
            text = line.decode("utf-8", "replace").rstrip()[:300]
            if self._ready_text in text:
                self._ready.set()
            self._hear(text)
            self._said.append(text)
            budget.pass_on(logging.DEBUG, text)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        return " | ".join(self._said) or "no output"


async def _ended(pid: int) -> None:
    """Until a child of ours has ended, reaped or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def find(name: str) -> str:
    """The program's path. Raises RefusedError (UNAVAILABLE) with how to get it."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if path is None:
        text = f"{name} is not installed: run launch/setup.sh --with-proxies, or use the built-in relay"
        raise RefusedError(Code.UNAVAILABLE, text)
    return path


def path(index: int) -> str:
    """Where the program finds `files[index]`."""
    return f"/proc/self/fd/{FIRST_FILE + index}"


def _memory(content: bytes) -> int:
    """A file in memory that the program's user alone can open."""
    memory = os.memfd_create("data-server", os.MFD_CLOEXEC)
    os.write(memory, content)
    os.lseek(memory, 0, os.SEEK_SET)
    os.fchmod(memory, 0o600)
    if os.geteuid() == 0:
        os.fchown(memory, pwd.getpwnam("nobody").pw_uid, -1)
    return memory
