# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An NBD server: fixed newstyle handshake, structured replies, block status, TLS.

protocol.py has the numbers and layouts of the protocol, as far as it is spoken. stream.py sends and receives.
handshake.py negotiates an export. transmission.py answers requests. listener.py accepts connections. disk.py is the
interface of a disk that is served; overlay.py adds private writes to one.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""
