#!/bin/busybox sh
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# What the agent calls to end the guest, with -P, -H or -r.
sync
umount -a -r -t ext4
case "$*" in
    *-r*) reboot -f ;;
    *) poweroff -f ;;
esac
