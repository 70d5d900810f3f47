"""A certificate authority for tests: signs pictures that nobody else trusts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dit.files import write_atomic, write_secret
from dit.generation.credentials import EXTRA


def write_authority(folder: Path, days: int) -> None:
    """Writes ca.pem, signer.pem (the chain, the signer's first) and signer.key, valid for so many days from yesterday,
    with keys on the curve P-256 (ES256). The authority's own key is not kept. Raises ValueError if they exist."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise ValueError(EXTRA) from None

    def certificate(name: str, key: Any, issuer: str, issuer_key: Any, is_authority: bool) -> Any:
        def named(text: str) -> Any:
            parts = [(NameOID.ORGANIZATION_NAME, "Local test"), (NameOID.COMMON_NAME, text)]
            return x509.Name([x509.NameAttribute(*part) for part in parts])

        start = datetime.now(UTC) - timedelta(days=1)
        others = ("content_commitment", "key_encipherment", "data_encipherment")
        flags = dict.fromkeys((*others, "key_agreement", "encipher_only", "decipher_only"), False)
        usage = x509.KeyUsage(
            digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **flags
        )
        builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        issued = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(issued, critical=False)
        if not is_authority:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = certificate("Local test authority", root, "Local test authority", root, True)
    leaf = certificate("Local test signer", own, "Local test authority", root, False)
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_secret(folder / "signer.key", own.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    write_atomic(folder / "ca.pem", authority)
    write_atomic(folder / "signer.pem", leaf + authority)
