# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and ciphers.

keys.py has the interface, which makes block ids and seals objects, and its implementation for unencrypted repositories.
encryption.py has the implementation for encrypted ones: AES-256-GCM, with all keys derived from one master key. gcm.py
encrypts many blocks quickly with the installed library. key_slots.py wraps the master key with a passphrase. The
library is imported only when an encrypted repository is opened.

Neighbours: format/ seals objects with these keys. This package imports nothing from the rest of repository/.
"""
