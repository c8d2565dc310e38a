#!/usr/bin/env bash
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Installs the Debian packages that tests and the demo need and that are missing. Further packages may be named.

set -euo pipefail

# libvirt starts no domain on a machine whose /dev/null has become a plain file, as a killed clean-up can leave it.
if [[ $EUID -eq 0 && ! -c /dev/null ]]; then
    echo "/dev/null is no device; it is made anew" >&2
    rm -f /dev/null
    mknod -m 666 /dev/null c 1 3
fi

packages=(
    apparmor busybox-static ceph-common ceph-mon ceph-osd cpio e2fsprogs git iproute2 libnbd-bin libsasl2-modules libvirt-clients
    libvirt-daemon-system make mmdebstrap openssh-client ovmf python3-boto3 python3-cryptography python3-jmespath python3-libnbd
    python3-libvirt python3-lz4 python3-venv python3-zstandard qemu-block-extra qemu-guest-agent qemu-system-x86 qemu-utils
    radosgw sasl2-bin swtpm swtpm-tools "$@"
)

missing=()
for package in "${packages[@]}"; do
    [[ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" == "install ok installed" ]] || missing+=("$package")
done

# The kernel of the small guest is fetched, not installed: apt must know of it.
known="$(apt-cache show linux-image-cloud-amd64 2>/dev/null || true)"

if [[ ${#missing[@]} -eq 0 && -n "$known" ]]; then
    exit 0
fi
if [[ $EUID -ne 0 ]]; then
    echo "Run this as root: these packages have to be installed: ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
if [[ ${#missing[@]} -gt 0 ]]; then
    apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
fi
