#!/bin/sh
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a command with a libvirt of its own: isolated.sh COMMAND [ARGUMENT...]
# The folders in which libvirt keeps its state are empty in its mount namespace, so it neither sees nor
# disturbs the libvirtd of this machine, its domains and other test runs. All its processes are in a
# process namespace, which ends with the command, and also when the caller is killed.
set -eu

if [ "${1:-}" != --inside ]; then
    # Shared within: file systems a test mounts later reach QEMU, which has a namespace too.
    exec setpriv --pdeathsig KILL \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- "$0" --inside "$@"
fi
shift
mount --make-rshared /
for folder in /run /etc/libvirt/qemu /var/lib/libvirt /var/log/libvirt; do
    mount -t tmpfs -o mode=0755 lab "$folder"
done
mkdir -p /var/log/libvirt/qemu
install -d -m 1777 /run/lock

# Waiting for the command, the shell also reaps every orphan. Were QEMU's remains not reaped, libvirt would take it for running.
status=0
"$@" || status=$?
exit "$status"
