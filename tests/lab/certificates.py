# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificate authorities, made by OpenSSL: independent of how the collection makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.process import run_tool

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def self_signed(key: Path, certificate: Path, name: str, extension: str) -> None:
    """Make a key and a certificate that it signs itself, with an extension as OpenSSL writes it."""
    subject = ["-days", "2", "-subj", f"/CN={name}", "-addext", extension]
    run_tool(["openssl", "req", "-x509", *_KEY, *subject, "-keyout", key, "-out", certificate])


class Authority:
    """An authority of its own, with the certificates of others in the folders QEMU and libnbd want them in."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.key, self.certificate = folder / "key.pem", folder / "cert.pem"
        usage = "keyUsage=critical,keyCertSign,cRLSign"
        self_signed(self.key, self.certificate, name, usage)

    def issue(self, kind: str, host: str, address: str, days: int = 2) -> Path:
        """A folder with the certificates of a host, for a `kind` of server or client; with negative `days` they have expired."""
        folder = self._folder / f"{host}-{kind}{days}"
        folder.mkdir()
        request, extensions = folder / "request", folder / "extensions"
        key, certificate = folder / f"{kind}-key.pem", folder / f"{kind}-cert.pem"
        run_tool(["openssl", "req", *_KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request])
        extensions.write_text(
            f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={kind}Auth\nsubjectAltName=DNS:{host},IP:{address}\n"
        )
        signing = [
            "-CA",
            self.certificate,
            "-CAkey",
            self.key,
            "-CAcreateserial",
            "-days",
            str(days),
            "-extfile",
            extensions,
        ]
        run_tool(["openssl", "x509", "-req", "-in", request, *signing, "-out", certificate])
        request.unlink()
        extensions.unlink()
        shutil.copy(self.certificate, folder / "ca-cert.pem")
        return folder
