#!/bin/busybox sh
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PID 1 of a lab guest: mounts every disk, starts the agent, then waits for ever.
export PATH=/bin:/sbin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /disks
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "LAB-GUEST-PROBLEM: module $module"
done

# /disks/vda, /disks/vdb and so on; /data is the first one.
for device in /dev/vd?; do
    [ -b "$device" ] || continue
    folder=/disks/${device#/dev/}
    mkdir -p "$folder"
    mount -t ext4 "$device" "$folder" || mount -t ext4 -o ro "$device" "$folder" ||
        echo "LAB-GUEST-PROBLEM: $device cannot be mounted"
done
ln -s /disks/vda /data

if grep -q lab.agent=1 /proc/cmdline; then
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] || continue
        qemu-ga --method virtio-serial --path "/dev/${port##*/}" --statedir /run &
    done
fi

echo LAB-GUEST-READY
# A shell that waits also reaps what loses its parent.
while :; do sleep 3600; done
