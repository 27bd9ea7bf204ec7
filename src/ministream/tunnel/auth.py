"""Authenticates callers by certificate or bearer token. Identities of different origin never share a name."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, field_validator

from ministream import config, log
from ministream.errors import ConfigError
from ministream.tunnel import files
from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.credentials import TOKEN_PREFIX, check_name
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.revocations import RevocationList
from ministream.tunnel.tls_listener import Caller

ANONYMOUS = "anonymous"
# What stock s2uc sends when it has no token.
NO_TOKEN = "INVALID_TOKEN"  # noqa: S105 - not a secret, the absence of one
_TOKEN_CHARS = 4096
_ANSWER_BYTES = 64 * 1024
_CACHE_S = 60.0
_CACHE_ENTRIES = 256
_ASKS_AT_ONCE = 4
_ASKS_PER_MINUTE = 120

_LOG = log.get(__name__)


# Why a credential that was good is not any more; None: it is. Asked again while a session runs.
Lapse = Callable[[], str | None]


class Verifier(Protocol):
    """Decides which tokens are valid."""

    async def identity(self, token: str) -> str | None:
        """The name that the token belongs to; None for an invalid one."""

    def lapse(self, token: str) -> Lapse:
        """Watches a token that was valid."""


class Authenticator:
    """Decides for every call. `revocations` None: no TLS, so there are no certificates."""

    def __init__(
        self, *, revocations: RevocationList | None, verifiers: tuple[Verifier, ...], anonymous_allowed: bool
    ) -> None:
        self._revocations = revocations
        self._verifiers = verifiers
        self._anonymous_allowed = anonymous_allowed

    async def identify(self, caller: Caller | None, metadata: Mapping[str, Any]) -> str:
        """The caller's identity: NAME, token:NAME or oauth:NAME. Raises RefusedError (UNAUTHENTICATED)."""
        if caller is not None and caller.name is not None:
            if (why := self._certificate_lapse(caller)) is not None:
                raise RefusedError(Code.UNAUTHENTICATED, f"{why}: ask this server's operator for a new one")
            return caller.name
        if (found := await self._by_token(metadata)) is not None:
            return found[0]
        if self._anonymous_allowed:
            return ANONYMOUS
        raise RefusedError(Code.UNAUTHENTICATED, self._remedy())

    async def lapse(self, caller: Caller | None, metadata: Mapping[str, Any]) -> Lapse:
        """Watches what the caller was identified by."""
        if caller is not None and caller.name is not None:
            return lambda: self._certificate_lapse(caller)
        found = await self._by_token(metadata)
        return _never if found is None else found[1]

    def _certificate_lapse(self, caller: Caller) -> str | None:
        if self._revocations is not None and caller.serial is not None and caller.serial in self._revocations:
            return f"the certificate of {caller.name!r} is revoked"
        if caller.expires_s is not None and caller.expires_s <= time.time():
            return f"the certificate of {caller.name!r} has expired"
        return None

    async def _by_token(self, metadata: Mapping[str, Any]) -> tuple[str, Lapse] | None:
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        if token and token != NO_TOKEN and len(token) <= _TOKEN_CHARS:
            for verifier in self._verifiers:
                if (identity := await verifier.identity(token)) is not None:
                    return identity, verifier.lapse(token)
        return None

    def _remedy(self) -> str:
        if self._verifiers:
            return "a client certificate or a valid token is needed: ask this server's operator for either"
        return (
            "this server requires mutual TLS: a certificate made by `ministream certs client`;"
            " stock s2uc, which has none, needs a server started with --allow-token"
        )


class TokenFile:
    """Hashed tokens: lines `NAME SHA256 [EXPIRY]` (hexadecimal; UNIX seconds). Read again for every decision."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that cannot be understood."""
        self._path = path
        self._entries()

    async def identity(self, token: str) -> str | None:
        return self._name_of(_digest(token))

    def lapse(self, token: str) -> Lapse:
        digest = _digest(token)
        return lambda: None if self._name_of(digest) else "the token has expired or was removed"

    def _name_of(self, digest: str) -> str | None:
        found = None
        for name, expected, expiry in self._entries():
            if hmac.compare_digest(digest, expected) and time.time() < expiry:
                found = f"token:{name}"
        return found

    def _entries(self) -> list[tuple[str, str, float]]:
        try:
            lines = files.read_key(self._path, "ministream certs token").decode().splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"tokens {self._path}: cannot be read: {error}") from error
        entries = []
        for number, line in enumerate(lines, start=1):
            fields = line.partition("#")[0].split()
            if not fields:
                continue
            try:
                name, digest, *expiry = fields
                if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size or len(expiry) > 1:
                    raise ValueError
                entries.append((check_name(name), digest.lower(), float(expiry[0]) if expiry else float("inf")))
            except ValueError:
                raise ConfigError(f"tokens {self._path}:{number}: write NAME SHA256 [EXPIRY]") from None
        return entries


class IntrospectionSection(config.Section):
    """`[introspection]` of the policy file: an OAuth 2 endpoint (RFC 7662) that checks tokens (Globus Auth)."""

    url: str
    client_id: str
    client_secret_file: str
    scope: str | None = Field(default=None, description="scope that a token must have")
    audience: str | None = Field(default=None, description="audience that a token must be for")
    timeout_s: float = Field(default=4.0, gt=0)

    @field_validator("url")
    @classmethod
    def _safe(cls, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        loopback = parts.hostname is not None and parse_endpoint(f"{parts.hostname}:1").is_loopback
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
            raise ValueError("tokens go over https only")
        return url


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Tokens and the client secret go to the configured address and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The endpoint's answer; it is asked again after `until_s`. `expires_s` is the token's own end."""

    identity: str | None
    until_s: float
    expires_s: float


class Introspection:
    """Asks the endpoint and caches its answer for at most a minute."""

    def __init__(self, section: IntrospectionSection) -> None:
        """Raises ConfigError when the client secret cannot be read."""
        self._section = section
        try:
            secret = files.read_key(Path(section.client_secret_file), "the OAuth provider").decode().strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"introspection secret {section.client_secret_file} is not text") from error
        basic = base64.b64encode(f"{section.client_id}:{secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}", "Accept": "application/json"}
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._verdicts: dict[str, _Verdict] = {}
        self._asked_s: deque[float] = deque(maxlen=_ASKS_PER_MINUTE)
        self._asking = asyncio.Semaphore(_ASKS_AT_ONCE)

    async def identity(self, token: str) -> str | None:
        """Raises RefusedError: UNAVAILABLE when the endpoint does not answer, RESOURCE_EXHAUSTED when it was asked too
        often. No caller is admitted meanwhile.
        """
        if token.startswith(TOKEN_PREFIX):
            return None
        key = _digest(token)
        known = self._verdicts.get(key)
        if known is None or known.until_s <= time.time():
            self._check_rate()
            try:
                async with self._asking:
                    answer = await asyncio.to_thread(self._ask, token)
            except (OSError, ValueError) as error:
                _LOG.error("introspection at %s failed: %s", self._section.url, error)
                text = "this server cannot reach the service that checks tokens: try again later"
                raise RefusedError(Code.UNAVAILABLE, text) from None
            known = self._judge(answer)
            self._remember(key, known)
        return known.identity

    def lapse(self, token: str) -> Lapse:
        """Until the expiry that the endpoint named; a session is not worth asking again and again."""
        known = self._verdicts.get(_digest(token))
        expires_s = float("inf") if known is None else known.expires_s
        return lambda: None if time.time() < expires_s else "the token has expired"

    def _check_rate(self) -> None:
        now = time.monotonic()
        if len(self._asked_s) == _ASKS_PER_MINUTE and now - self._asked_s[0] < 60:
            raise RefusedError(Code.RESOURCE_EXHAUSTED, "too many unknown tokens: try again in a minute")
        self._asked_s.append(now)

    def _remember(self, key: str, verdict: _Verdict) -> None:
        """Invalid tokens never evict valid ones from the cache: anybody can invent invalid tokens."""
        self._verdicts.pop(key, None)
        if len(self._verdicts) >= _CACHE_ENTRIES:
            bad = (known for known, old in self._verdicts.items() if old.identity is None)
            self._verdicts.pop(next(bad, next(iter(self._verdicts))))
        self._verdicts[key] = verdict

    def _ask(self, token: str) -> dict[str, Any]:
        body = urllib.parse.urlencode({"token": token}).encode()
        request = urllib.request.Request(self._section.url, body, self._headers)
        try:
            with self._opener.open(request, timeout=self._section.timeout_s) as response:
                answer = json.loads(response.read(_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            raise
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")  # noqa: TRY004 - a malformed value, not a type error
        return answer

    def _judge(self, answer: dict[str, Any]) -> _Verdict:
        now = time.time()
        expiry = answer.get("exp")
        ends = float(expiry) if isinstance(expiry, (int, float)) else float("inf")
        until = min(now + _CACHE_S, ends)
        audience = answer.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        name = answer.get("username") or answer.get("sub")
        good = (
            answer.get("active") is True
            and until > now
            and isinstance(name, str)
            and (self._section.scope is None or self._section.scope in str(answer.get("scope", "")).split())
            and (self._section.audience is None or self._section.audience in audiences)
        )
        return _Verdict(f"oauth:{name}" if good else None, until, ends)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _never() -> None:
    """A caller without credentials, which only loopback admits."""
