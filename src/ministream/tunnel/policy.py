"""What a control server allows: who, where to, how much. Read from a TOML file or built by the embedding job."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ministream import config, private
from ministream.errors import ConfigError
from ministream.tunnel.address import Endpoint, parse_endpoint
from ministream.tunnel.auth import IntrospectionSection
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role
from ministream.tunnel.sessions import Quota


@dataclass(frozen=True, slots=True)
class Target:
    """A rule `host:ports`: host is a name, an address, a network (10.0.0.0/8) or `*`; ports 7000, 7000-7010 or `*`."""

    host: str
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError with the form expected."""
        host, _, ports = text.rpartition(":")
        low, _, high = ("1-65535" if ports == "*" else ports).partition("-")
        try:
            rule = cls(_normal_host(host), int(low), int(high or low))
        except (ValueError, RefusedError):
            raise ConfigError(f"target {text!r}: write host:port, 10.0.0.0/8:7000-7010 or *:*") from None
        if not 1 <= rule.first <= rule.last <= 65535:
            raise ConfigError(f"target {text!r}: ports go from 1 to 65535, the lower one first")
        return rule

    def allows(self, named: Endpoint, address: str) -> bool:
        """Whether the rule covers a target as it was named and as it resolved (a numeric address)."""
        if not self.first <= named.port <= self.last:
            return False
        if self.host in ("*", named.host):
            return True
        try:
            return _numeric(address) in ipaddress.ip_network(self.host)
        except ValueError:
            return False


def _normal_host(host: str) -> str:
    if host == "*":
        return host
    if "/" in host:
        return str(ipaddress.ip_network(host.strip("[]")))
    return parse_endpoint(f"{host}:1").host


def _numeric(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


class IdentitySection(config.Section):
    """`[identities.NAME]`: one certificate's common name or one token's name."""

    roles: tuple[Annotated[Role, Field(strict=False)], ...] = Field(default=tuple(Role), strict=False)
    targets: tuple[str, ...] | None = Field(default=None, strict=False, description="none: the server's")
    admin: bool = Field(default=False, description="sees every session and may release any")


class PolicySection(config.Section):
    """The policy file."""

    targets: tuple[str, ...] | None = Field(default=None, strict=False)
    port_range: tuple[int, int] | None = Field(default=None, strict=False)
    plain_data: bool = Field(default=False, description="allow sessions without TLS between the gateways")
    rate_kbytes_s: int = Field(default=0, ge=0, description="limit of every session in kB/s; 0: none")
    client_rate: bool = Field(default=False, description="obey a client's --rate; stock s2uc always sends 10000")
    quota: Quota = Quota()
    introspection: IntrospectionSection | None = None
    identities: dict[str, IdentitySection] = Field(default={}, description="none: everyone who authenticates")

    @model_validator(mode="after")
    def _targets_parse(self) -> Self:
        for text in (*(self.targets or ()), *(t for one in self.identities.values() for t in one.targets or ())):
            try:
                Target.parse(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self


class Policy:
    """Allows by returning and denies by raising RefusedError (PERMISSION_DENIED)."""

    def __init__(self, section: PolicySection | None = None) -> None:
        self.section = section or PolicySection()

    @classmethod
    def for_job(cls, names: Iterable[str] = ()) -> Self:
        """A job's own server: only these identities (none: everyone who authenticates); sessions last as the job."""
        identities = {name: IdentitySection() for name in names}
        return cls(PolicySection(identities=identities, quota=Quota(lifetime_s=0)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy file. Raises ConfigError naming the file and the key."""
        try:
            tables = tomllib.loads(private.read_file(path, secret=False).decode())
        except OSError as error:
            raise ConfigError(f"policy {path}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"policy {path}: not valid TOML: {error}") from error
        return cls(config.parse(PolicySection, tables, f"policy {path}"))

    @property
    def quota(self) -> Quota:
        """The limits."""
        return self.section.quota

    def rate_for(self, asked_kbytes_s: int) -> int:
        """The limit of a session in kB/s, 0 for none: the server's, and the client's where it may ask for one."""
        limits = (self.section.rate_kbytes_s, asked_kbytes_s if self.section.client_rate else 0)
        return min((limit for limit in limits if limit), default=0)

    def admit(self, identity: str) -> None:
        """Whether this identity may use the server at all."""
        if self.section.identities and identity not in self.section.identities:
            text = (
                f"{identity!r} may not use this server: its operator adds the name to [identities] of the policy,"
                " or to `clients` in [tunnel] of the job that hosts it"
            )
            raise RefusedError(Code.PERMISSION_DENIED, text)

    def check_role(self, identity: str, role: Role) -> None:
        """Whether this identity may open sessions of this role."""
        if role not in self._of(identity).roles:
            raise RefusedError(Code.PERMISSION_DENIED, f"{identity!r} may not open {role} sessions here")

    def is_admin(self, identity: str) -> bool:
        """Whether this identity sees and may end other people's sessions."""
        return self._of(identity).admin

    def check_target(self, identity: str, named: Endpoint, address: str, default: Iterable[Target]) -> None:
        """Whether this identity may have bytes carried to a target; `default` rules hold where the file has none."""
        texts = self._of(identity).targets
        if texts is None:
            texts = self.section.targets
        rules = default if texts is None else map(Target.parse, texts)
        if not any(rule.allows(named, address) for rule in rules):
            shown = f"{named} ({address})" if address != named.host else str(named)
            raise RefusedError(
                Code.PERMISSION_DENIED, f"target {shown} is not in this server's policy: ask its operator"
            )

    def _of(self, identity: str) -> IdentitySection:
        return self.section.identities.get(identity, IdentitySection())
