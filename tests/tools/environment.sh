#!/usr/bin/env bash
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes .venv with what development needs of PyPI. It sees the system's packages: libvirt and libnbd exist only there.

set -euo pipefail
cd "$(dirname "$0")/../.."

stamp=.venv/requirements.txt
if cmp --silent tests/requirements.txt "$stamp"; then
    exit 0
fi
/usr/bin/python3 -m venv --system-site-packages .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
cp tests/requirements.txt "$stamp"
