"""Records of TLS 1.3 that no library would send, sealed with the keys of a real connection (RFC 8446 §5, §7)."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

APPLICATION_DATA, HANDSHAKE = 23, 22
KEY_UPDATE_REQUESTED = bytes.fromhex("1800000101")


class Sealer:
    """Seals what a client sends after its handshake. `key_log` is where its context has written the secrets."""

    def __init__(self, key_log: Path, cipher: str) -> None:
        line = next(line for line in key_log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0"))
        self._hash: HashAlgorithm = SHA384() if cipher.endswith("SHA384") else SHA256()
        self._key_bytes = 32 if "256_GCM" in cipher else 16
        self._secret = bytes.fromhex(line.split()[2])
        self._take_up()

    def seal(self, kind: int, content: bytes) -> bytes:
        """One record."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = bytes(a ^ b for a, b in zip(self._iv, self._number.to_bytes(12, "big"), strict=True))
        self._number += 1
        return head + self._aead.encrypt(nonce, inner, head)

    def key_update(self) -> bytes:
        """A KeyUpdate that asks for one in return; from now on records are sealed with new keys."""
        record = self.seal(HANDSHAKE, KEY_UPDATE_REQUESTED)
        self._secret = self._expand(self._secret, b"traffic upd", self._hash.digest_size)
        self._take_up()
        return record

    def _take_up(self) -> None:
        self._aead = AESGCM(self._expand(self._secret, b"key", self._key_bytes))
        self._iv = self._expand(self._secret, b"iv", 12)
        self._number = 0

    def _expand(self, secret: bytes, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        return HKDFExpand(self._hash, size, size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0").derive(secret)


def logging_context(context: ssl.SSLContext, key_log: Path) -> ssl.SSLContext:
    """The context, with its secrets written to a file, and TLS 1.3 with AES only."""
    context.keylog_filename = str(key_log)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
