"""`python -m server.provenance.trial FOLDER`: create a certificate and key to try content credentials.

The certificate authority's key is discarded: readers report such credentials as valid, not as trusted.
"""

import datetime
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365
Key = ec.EllipticCurvePrivateKey


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Returns the paths of the certificate chain and the key. Raises FileExistsError if one exists."""
    authority_key, key = _key(), _key()
    authority = _certificate("ideoserve trial authority", authority_key, authority_key, is_authority=True)
    certificate = _certificate("ideoserve trial", key, authority_key, is_authority=False)
    folder.mkdir(parents=True, exist_ok=True)
    chain = certificate.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _write(folder / "certificate.pem", chain, 0o644), _write(folder / "key.pem", private, 0o600)


def _key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def _certificate(subject: str, key: Key, issuer_key: Key, *, is_authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    public, issuer = key.public_key(), issuer_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("ideoserve trial authority"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    if not is_authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, SHA256())


def _name(common: str) -> x509.Name:
    attributes = {NameOID.COMMON_NAME: common, NameOID.ORGANIZATION_NAME: "ideoserve trial"}
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes.items()])


def _usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write(file: Path, data: bytes, mode: int) -> Path:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
    return file


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    if len(argv) != 1:
        print("usage: python -m server.provenance.trial FOLDER", file=sys.stderr)
        return 2
    try:
        certificate, key = write_pair(Path(argv[0]))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"--c2pa-certificate-file {certificate} --c2pa-key-file {key}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
