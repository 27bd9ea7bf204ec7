#!/usr/bin/env bash
# cryptography 50.0.2: a certificate with an unknown version raises an exception that is not a ValueError.
#
# Expected: ValueError, which load_pem_x509_certificate and load_der_x509_certificate raise for all other bytes that are
#           no certificate.
# Found:    x509.InvalidVersion, which derives from Exception alone; a parser of untrusted bytes that catches ValueError
#           lets it pass.
# Output:   garbage: ValueError; version 35: InvalidVersion, a ValueError: False
# Instead:  catch both, as tunnel/certificates.py does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check cryptography==50.0.2
found=$("$folder/venv/bin/python" - <<'PYTHON'
import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
now = datetime.datetime.now(datetime.UTC)
builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def raised(der: bytes) -> type[BaseException]:
    try:
        x509.load_der_x509_certificate(der)
    except Exception as error:
        return type(error)
    raise SystemExit("no exception")


garbage, version = raised(b"garbage"), raised(der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020122"), 1))
print(f"garbage: {garbage.__name__}; version 35: {version.__name__}, a ValueError: {issubclass(version, ValueError)}")
PYTHON
)
printf '%s\n' "$found"
[[ $found = "garbage: ValueError; version 35: InvalidVersion, a ValueError: False" ]]
