"""Certificate authorities of one test run, made when first needed, and the certificates that they issue, as PEM files."""

from __future__ import annotations

import atexit
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

PASSWORD = "not a secret"


class Authority:
    """Issues certificates. `file` is its own."""

    def __init__(self, folder: Path, name: str, issuer: Authority | None = None) -> None:
        self._ca = issuer._ca.create_child_ca() if issuer else trustme.CA(organization_name=name)
        self._folder = folder
        self._name = name
        self.file = str(folder / f"{name}-ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    @cache  # noqa: B019 - there are two authorities, for the whole run
    def issue(
        self, *names: str, common_name: str | None = None, organization: str | None = None, not_after: datetime | None = None
    ) -> Pair:
        """A certificate for host names, addresses or e-mail addresses, and its key."""
        leaf = self._ca.issue_cert(*names, common_name=common_name, organization_name=organization, not_after=not_after)
        pair = Pair(self._folder / f"{self._name}-{len(list(self._folder.iterdir()))}")
        pair.write(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())
        return pair

    def intermediate(self, name: str) -> Authority:
        """An authority whose certificate this one has issued; it is part of the chain of the certificates that it issues."""
        return Authority(self._folder, name, self)

    def revoke(self, *revoked: Pair | Authority, days: int = 30) -> str:
        """The path of a revocation list of these certificates, valid for `days` days."""
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject
        now = datetime.now(UTC)
        made = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(now - timedelta(days=60))
        made = made.next_update(now + timedelta(days=days))
        for each in revoked:
            file = each.file if isinstance(each, Authority) else each.certificate
            number = x509.load_pem_x509_certificate(Path(file).read_bytes()).serial_number
            made = made.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now - timedelta(days=1)).build()
            )
        path = self._folder / f"{self._name}-{len(list(self._folder.iterdir()))}.crl"
        path.write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]
        return str(path)

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """The TLS settings of a client that trusts this authority, and sends `pair` if the server asks for a certificate."""
        context = ssl.create_default_context(cafile=self.file)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python 3.11.2 sets it, which makes a cut look like an end
        if pair is not None:
            context.load_cert_chain(pair.both)
        return context


class Pair:
    """A certificate and its key: in two files, in one (`both`), and the key encrypted with PASSWORD (`locked`)."""

    def __init__(self, stem: Path) -> None:
        self.certificate = f"{stem}.pem"
        self.key = f"{stem}.key"
        self.both = f"{stem}-both.pem"
        self.locked = f"{stem}-locked.key"

    def write(self, chain: bytes, key: bytes) -> None:
        """Write all four files."""
        locked = load_pem_private_key(key, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode())
        )
        for path, content in ((self.certificate, chain), (self.key, key), (self.both, key + chain), (self.locked, locked)):
            Path(path).write_bytes(content)


@cache
def authority(name: str = "trusted") -> Authority:
    """The authority of this name, one for the whole test run."""
    folder = mkdtemp(prefix="rgate-test-certificates-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Authority(Path(folder), name)
