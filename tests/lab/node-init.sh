#!/bin/sh
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# First process of a node: node-init.sh NAME FOLDER TREE [rw:PATH | ro:PATH]...
# FOLDER/root becomes the root: an overlay in memory on TREE, with the named folders of the
# machine in their places and FOLDER/files copied over it.
# Runs in new mount, uts, pid, ipc and net namespaces until standard input ends.
set -eu

name=$1 folder=$2 tree=$3
shift 3
hostname "$name"
root=$folder/root

# All of the node's own files are in memory of this namespace: they vanish with it.
mkdir -p "$folder/overlay" "$root"
mount -t tmpfs -o mode=0755 lab "$folder/overlay"
mkdir "$folder/overlay/upper" "$folder/overlay/work"
mount -t overlay -o "lowerdir=$tree,upperdir=$folder/overlay/upper,workdir=$folder/overlay/work" lab "$root"

# Nothing of the machine's libvirt, and no place where a program of the machine leaves files or secrets.
for path in etc/libvirt root run tmp var/lib/libvirt var/log/libvirt var/tmp; do
    mkdir -p "$root/$path"
    mount -t tmpfs -o "mode=$(stat -c %a "$root/$path")" lab "$root/$path"
done
mkdir -p "$root/run/lock" "$root/run/sshd" "$root/var/log/libvirt/qemu"
mount -t proc -o nosuid,nodev,noexec lab "$root/proc"
# Without cgroups below it: libvirt does without them.
mount -t sysfs -o ro,nosuid,nodev,noexec lab "$root/sys"

# No /dev/kvm: everything is emulated, and its mode decides about libvirtd's speed (kvm_device.py).
mount -t tmpfs -o mode=0755,nosuid lab "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 lab "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev lab "$root/dev/shm"
while read -r device minor; do
    mknod -m 0666 "$root/dev/${device%:*}" c "${device#*:}" "$minor"
done <<END
null:1 3
zero:1 5
full:1 7
random:1 8
urandom:1 9
tty:5 0
END
mkdir "$root/dev/net"
mknod -m 0666 "$root/dev/net/tun" c 10 200  # for domains with network interfaces
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

for place; do
    path=${place#*:}
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    [ "${place%%:*}" = rw ] || mount -o remount,bind,ro "$root$path"
done
cp -a "$folder/files/." "$root/"

exec 3<&0 </dev/null
cd "$root"
pivot_root . .
umount -l .
cd /
# As on a machine with systemd: file systems a test mounts later reach QEMU, which has a namespace too.
mount --make-rshared /

if [ -e /etc/ssh/lab_sshd_config ]; then
    grep -q '^sshd:' /etc/passwd || echo 'sshd:x:991:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
    /usr/sbin/sshd -f /etc/ssh/lab_sshd_config 3<&-
fi
virtlogd -d 3<&-
libvirtd -d 3<&-

# Waiting for one child, the shell also reaps every orphan. Were QEMU's remains
# not reaped, libvirt would take it for running.
cat <&3 >/dev/null &
wait $!
