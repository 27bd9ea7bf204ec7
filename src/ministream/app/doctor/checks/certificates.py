"""Certificates, keys, the list of revoked certificates, and the keys of an encrypted stream."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from ministream.app.doctor.finding import Finding, Subject, bad, doubtful, good, left_out
from ministream.errors import ConfigError
from ministream.tunnel import curve, expiry, files
from ministream.tunnel.credentials import Credentials, check_directory
from ministream.tunnel.revocations import read_revoked


def examine(subject: Subject) -> Iterator[Finding]:
    """Every file in the folder of credentials, and of the stream's keys."""
    folder, keys = subject.config.tunnel.credentials, subject.config.stream.curve
    if folder is not None:
        yield from _credentials(folder)
    else:
        yield left_out("credentials", "none configured: --credentials DIR names them")
    if keys is not None:
        yield from _stream_keys(keys)


def _credentials(folder: Path) -> Iterator[Finding]:
    try:
        check_directory(folder)
        yield _revocations(folder)
        for file in expiry.FILES:
            if file == "ca.crt" or (folder / file).exists():
                yield _certificate(folder, file)
        for key in ("server.key", "client.key"):
            if (folder / key).exists():
                yield _key(folder / key)
        Credentials.load(folder)
    except ConfigError as error:
        yield _refused("credentials", error)
    if (folder / "ca.key").exists():
        remedy = "only the issuing machine needs it: issue with --out to a separate folder per party, and use that"
        yield doubtful("authority's key", f"{folder / 'ca.key'} is here", remedy)


def _revocations(folder: Path) -> Finding:
    path = folder / "revoked"
    try:
        count = len(read_revoked(path))
    except ConfigError as error:
        return _refused("revocation list", error)
    changed = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return good("revocation list", f"{count} certificates, last changed {changed:%Y-%m-%d}")


def _certificate(folder: Path, file: str) -> Finding:
    subject = f"certificate {file}"
    try:
        held = expiry.held(folder, file)
    except ConfigError as error:
        return _refused(subject, error)
    found = f"{held.name}, {held.state}, expires {held.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if held.state == "not yet valid":
        return bad(subject, found, "check this machine's clock: date -u")
    if held.state != "valid":
        return bad(subject, found, _renewal(folder, held.name, file))
    if expiry.is_soon(held.certificate):
        return doubtful(subject, f"{found}, in {held.days_left:.1f} days", _renewal(folder, held.name, file))
    return good(subject, found)


def _renewal(folder: Path, name: str, file: str) -> str:
    if file == "ca.crt":
        return "create a new authority, issue every party's certificates anew: ministream certs init CA"
    if (folder / "ca.key").exists():
        return f"ministream certs renew {folder} {name}"
    return f"on the authority's machine: ministream certs renew CA {name} --out NEW, then copy NEW here as {folder}"


def _key(path: Path) -> Finding:
    try:
        files.read_key(path)
    except ConfigError as error:
        return _refused(f"key {path.name}", error)
    return good(f"key {path.name}", "only you can read it")


def _stream_keys(folder: Path) -> Iterator[Finding]:
    """Those of either side; a machine needs one of them."""
    sides = [side for side in curve.SIDES if (folder / f"{side}.secret").exists()]
    if not sides:
        yield bad("stream keys", f"{folder} holds no secret key", f"ministream certs curve {folder}")
    for side in sides:
        try:
            curve.load(folder, side)
        except ConfigError as error:
            yield _refused(f"stream keys, {side}", error)
        else:
            yield good(f"stream keys, {side}", f"in {folder}")


def _refused(subject: str, error: ConfigError) -> Finding:
    """An error's text has both parts: what was found, and after the first colon what to do."""
    return bad(subject, "not usable", str(error))
