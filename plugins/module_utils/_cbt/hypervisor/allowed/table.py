# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of what a definition from a repository may hold. Data.

A line is the path of an element below ``domain`` and its attributes; ``#`` is its text, ``**`` all its content.
Everything else is removed. Lines of one path add up, and ``--`` begins a comment. ``=`` after a name is followed by a
kind of value (see ``values``), or by the allowed values; without ``=``, the value must be a word without a slash. ``!``
after an attribute: if its value is not allowed, the element is removed. ``!`` after a path: if the element is not
allowed, its parent is removed. ``?`` precedes the replacement of a value that is not allowed.
"""

from __future__ import annotations

import typing as t

from .rules import Rule, read

_MACHINE = """
.                           type id
name                        #
uuid                        #
genid                       #
title                       #=TEXT
description                 #=TEXT
metadata                    **
memory                      unit dumpCore #
maxMemory                   unit slots #
currentMemory               unit #
vcpu                        placement cpuset current #
vcpus
vcpus/vcpu                  id enabled hotpluggable order
iothreads                   #
iothreadids
iothreadids/iothread        id thread_pool_min thread_pool_max
iothreadids/iothread/poll   max grow shrink
defaultiothread             thread_pool_min thread_pool_max
on_poweroff                 #=destroy|restart|preserve|rename-restart
on_reboot                   #=destroy|restart|preserve|rename-restart
on_crash                    #=destroy|restart|preserve|rename-restart
on_lockfailure              #=poweroff|restart|pause|ignore
resource
resource/partition!         #=SLICE!
pm
pm/{suspend-to-mem,suspend-to-disk}     enabled
keywrap
keywrap/cipher              name state
launchSecurity              type kernelHashes authorKey vcek
launchSecurity/{cbitpos,reducedPhysBits,policy}     #
launchSecurity/{dhCert,session,guestVisibleWorkarounds,idBlock,idAuth,hostData,mrConfigId,mrOwner,mrOwnerConfig}     #=BASE64
sysinfo                     type=smbios|fwcfg!
sysinfo/{bios,system,baseBoard,chassis,oemStrings}
sysinfo/{bios,system,baseBoard,chassis,oemStrings}/entry    name #=TEXT
sysinfo/entry               name=FWCFG! file=NONE! #=TEXT      -- never the content of a file of the host
clock                       offset timezone=ZONE basis adjustment start
clock/timer                 name track tickpolicy frequency mode present
clock/timer/catchup         threshold slew limit
"""

_RESOURCES = """
blkiotune
blkiotune/weight            #
memtune
memtune/{hard_limit,soft_limit,swap_hard_limit,min_guarantee}   unit #
memoryBacking
memoryBacking/hugepages
memoryBacking/hugepages/page    size unit nodeset
memoryBacking/{nosharepages,discard}
memoryBacking/source        type=anonymous|memfd
memoryBacking/access        mode
memoryBacking/allocation    mode threads
cputune
cputune/{shares,period,quota,global_period,global_quota,emulator_period,emulator_quota,iothread_period,iothread_quota}  #
cputune/vcpupin             vcpu cpuset
cputune/emulatorpin         cpuset
cputune/iothreadpin         iothread cpuset
numatune
numatune/memory             mode nodeset placement
numatune/memnode            cellid mode nodeset
"""

_SYSTEM = """
os                          firmware
os/type                     arch machine #=hvm!
os/firmware
os/firmware/feature         enabled name
os/loader                   readonly type secure stateless format #=LOADER!
os/nvram                    template=TEMPLATE templateFormat format type=file #=OWN!
os/{kernel,initrd,dtb}      #=OWN!
os/cmdline                  #=TEXT
os/boot                     dev
os/bootmenu                 enable timeout
os/bios                     useserial rebootTimeout
os/smbios                   mode=emulate|sysinfo
"""

_PROCESSOR = """
cpu                         mode match check migratable deprecated_features
cpu/model                   fallback vendor_id #
cpu/vendor                  #
cpu/topology                sockets dies clusters cores threads books drawers
cpu/feature                 name policy
cpu/cache                   level mode
cpu/maxphysaddr             mode bits limit
cpu/numa
cpu/numa/cell               id cpus memory unit memAccess discard
cpu/numa/cell/distances
cpu/numa/cell/distances/sibling     id value
cpu/numa/cell/cache         level associativity policy
cpu/numa/cell/cache/{size,line}     value unit
cpu/numa/interconnects
cpu/numa/interconnects/latency      initiator target cache type value
cpu/numa/interconnects/bandwidth    initiator target cache type value unit
features
features/{acpi,pae,viridian,hap,pmu,pvspinlock,vmport,htm,nested-hv,ccf-assist,vmcoreinfo,async-teardown,ras,ps2}   state
features/apic               eoi
features/gic                version
features/ioapic             driver
features/{cfpc,sbbc,ibs,aia}    value
features/msrs               unknown
features/hpt                resizing
features/hpt/maxpagesize    unit #
features/smm                state
features/smm/tseg           unit #
features/tcg
features/tcg/tb-cache       unit #
features/kvm
features/kvm/{hidden,hint-dedicated,poll-control,pv-ipi}    state
features/kvm/dirty-ring     state size
features/hyperv             mode
features/hyperv/{relaxed,vapic,vpindex,runtime,synic,reset,frequencies,reenlightenment,ipi,evmcs,avic,emsr_bitmap,xmm_input}  state
features/hyperv/spinlocks   state retries
features/hyperv/vendor_id   state value
features/hyperv/{stimer,tlbflush}       state
features/hyperv/stimer/direct           state
features/hyperv/tlbflush/{direct,extended}  state
"""

_DEVICES = (
    "disk,controller,interface,graphics,video,sound,input,serial,parallel,console,channel,redirdev,smartcard,hub,watchdog,memballoon,"
    "rng,tpm,panic,vsock,iommu,memory,crypto,nvram"
)
_COMMON = f"""
devices
devices/emulator            #=EMULATOR!
devices/{{{_DEVICES}}}/alias    name
devices/{{{_DEVICES}}}/acpi     index
devices/{{{_DEVICES}}}/boot     order loadparm
devices/{{{_DEVICES}}}/address  type domain bus slot function multifunction controller target unit port cssid ssid devno base reg iobase irq
devices/{{{_DEVICES}}}/address/zpci     uid fid
devices/{{disk,controller,interface,video,sound,input,memballoon,rng,vsock,iommu,crypto}}/driver    iommu ats packed page_per_vq
"""

_STORAGE = """
devices/disk                type=file|block! device=disk|cdrom|floppy model snapshot
devices/disk/driver         name type cache io ioeventfd event_idx error_policy rerror_policy copy_on_read discard discard_no_unref detect_zeroes
devices/disk/driver         iothread queues queue_size
devices/disk/driver/iothreads
devices/disk/driver/iothreads/iothread          id
devices/disk/driver/iothreads/iothread/queue    id
devices/disk/driver/metadata_cache
devices/disk/driver/metadata_cache/max_size     unit #
devices/disk/source         file=OWN! dev=OWN! startupPolicy
devices/disk/target         dev bus tray removable rotation_rate dpofua
devices/disk/{readonly,serial,wwn,vendor,product}   #
devices/disk/blockio        logical_block_size physical_block_size discard_granularity
devices/disk/geometry       cyls heads secs trans
devices/disk/iotune
devices/disk/iotune/{total,read,write}_{bytes,iops}_sec             #
devices/disk/iotune/{total,read,write}_{bytes,iops}_sec_max         #
devices/disk/iotune/{total,read,write}_{bytes,iops}_sec_max_length  #
devices/disk/iotune/{size_iops_sec,group_name}  #
devices/controller          type index model ports vectors maxEventChannels maxGrantFrames
devices/controller/driver   queues cmd_per_lun max_sectors ioeventfd iothread
devices/controller/driver/iothreads
devices/controller/driver/iothreads/iothread        id
devices/controller/driver/iothreads/iothread/queue  id
devices/controller/model    name
devices/controller/target   chassisNr chassis port hotplug busNr index memReserve
devices/controller/target/node  #
devices/controller/master   startport
devices/controller/pcihole64    unit #
"""

_NETWORK = """
devices/interface           type=network|bridge|direct|user|ethernet|null! managed
devices/interface/source!   network portgroup bridge dev mode=vepa|bridge|private!
devices/interface/mac       address type check
devices/interface/model     type
devices/interface/driver    name=vhost|qemu queues rx_queue_size tx_queue_size txmode ioeventfd event_idx rss rss_hash_report
devices/interface/driver/{host,guest}   csum gso tso4 tso6 ecn ufo mrg_rxbuf
devices/interface/backend   type=passt|default hostname fqdn
devices/interface/virtualport   type
devices/interface/virtualport/parameters    interfaceid instanceid managerid typeid typeidversion profileid
devices/interface/vlan      trunk
devices/interface/vlan/tag  id nativeMode
devices/interface/bandwidth classID
devices/interface/bandwidth/{inbound,outbound}  average peak burst floor
devices/interface/filterref     filter
devices/interface/filterref/parameter   name value=ADDRESS
devices/interface/link      state
devices/interface/mtu       size
devices/interface/coalesce
devices/interface/coalesce/rx
devices/interface/coalesce/rx/frames    max
devices/interface/tune
devices/interface/tune/sndbuf   #
devices/interface/port      isolated
devices/interface/rom       bar enabled
devices/interface/teaming   type persistent
devices/interface/ip        address family prefix
devices/vsock               model
devices/vsock/cid           auto address
"""

_CHARACTERS = """
devices/{serial,parallel,console}           type=pty|null|vc|stdio|spicevmc|qemu-vdagent|spiceport?pty
devices/channel             type=pty|null|unix|spicevmc|qemu-vdagent|spiceport?unix
devices/{serial,parallel,console}/source                    channel
devices/channel/source      mode=bind channel                -- without a path: libvirt names the socket
devices/{serial,parallel,console,channel}/source/clipboard  copypaste
devices/{serial,parallel,console,channel}/source/mouse      mode
devices/{serial,parallel,console}/target        type port
devices/{serial,parallel,console}/target/model  name
devices/channel/target!     type=virtio|xen! name state
devices/redirdev            bus type=spicevmc!
devices/redirfilter
devices/redirfilter/usbdev  class vendor product version allow
devices/smartcard           mode=passthrough! type=spicevmc!
"""

_DISPLAYS = """
devices/graphics            type=vnc|spice|rdp! listen=LOOPBACK port tlsPort autoport websocket keymap passwd=TEXT passwdValidTo connected
devices/graphics            sharePolicy powerControl defaultMode multiUser
devices/graphics/listen     type=address|none|socket! address=LOOPBACK
devices/graphics/channel    name mode
devices/graphics/{image,jpeg,zlib,playback}     compression
devices/graphics/{streaming,mouse}      mode
devices/graphics/clipboard  copypaste
devices/graphics/filetransfer   enable
devices/graphics/gl         enable=no
devices/graphics/audio      id
devices/video
devices/video/driver        name=qemu vgaconf
devices/video/model         type vram vram64 ram vgamem heads primary blob edid
devices/video/model/acceleration    accel2d accel3d=no
devices/video/model/resolution      x y
devices/sound               model multichannel streams
devices/sound/codec         type
devices/sound/audio         id
devices/audio               id type=none|spice?none timerPeriod
devices/audio/{input,output}            mixingEngine fixedSettings voices bufferLength
devices/audio/{input,output}/settings   frequency channels format
"""

_OTHERS = """
devices/input               type=mouse|tablet|keyboard! bus model
devices/hub                 type
devices/watchdog            model action=reset|shutdown|poweroff|pause|none|inject-nmi
devices/memballoon          model autodeflate freePageReporting
devices/memballoon/stats    period
devices/rng                 model
devices/rng/rate            bytes period
devices/rng/backend!        model=random|builtin! #=RANDOM!
devices/tpm                 model
devices/tpm/backend!        type=emulator! version persistent_state
devices/tpm/backend/encryption  secret
devices/tpm/backend/active_pcr_banks
devices/tpm/backend/active_pcr_banks/{sha1,sha256,sha384,sha512}
devices/panic               model
devices/iommu               model
devices/iommu/driver        intremap caching_mode eim iotlb aw_bits dma_translation passthrough xtsup pt granule
devices/nvram
devices/crypto              model type
devices/crypto/backend!     model=builtin! queues
devices/memory              model=dimm|virtio-mem|sgx-epc! access discard
devices/memory/uuid         #
devices/memory/source
devices/memory/source/pagesize      unit #
devices/memory/source/nodemask      #
devices/memory/target       dynamicMemslots
devices/memory/target/{size,requested,current,block}    unit #
devices/memory/target/node  #
devices/memory/target/address   base
"""

ALLOWED: t.Mapping[str, Rule] = read(
    _COMMON + _MACHINE + _RESOURCES + _SYSTEM + _PROCESSOR + _STORAGE + _NETWORK + _CHARACTERS + _DISPLAYS + _OTHERS
)

# A machine does not run without these. If one is not allowed, the whole definition is refused.
REFUSED: frozenset[str] = frozenset(
    {
        ".",
        "os",
        "os/type",
        "os/loader",
        "os/kernel",
        "os/initrd",
        "os/dtb",
        "devices/hostdev",
        "devices/filesystem",
        "devices/interface",
        "devices/shmem",
        "devices/memory",
        "devices/tpm",
    }
)
