#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_image
short_description: Convert disk images so that their changes can be tracked
version_added: 0.1.0
description:
  - Converts RAW images and qcow2 images of version 2, which cannot hold bitmaps, to qcow2 images of version 3.
  - The disks of a running domain are copied while the guest writes to them, and the domain switches to the copies
    without interruption (C(blockcopy)). The images of a domain that is shut off are changed in place (C(amend), for
    qcow2) or copied (C(convert), for RAW).
  - The original of a copied image is kept until the copy has been compared with it and the domain has been seen running
    on the copy. It is then removed, unless O(keep_original) is set, another image uses it as its backing file, or it is
    a device. While the original waits for removal, a link beside the new image points to it and records its format.
    The name of the link is that of the new image with C(.cbt-original-raw) or C(.cbt-original-qcow2) appended.
  - If the conversion fails, it is undone, and the domain continues to use the original. The next run resumes a
    conversion that was killed.
  - A backing file stays where it is and remains the backing file of the new image. It is never written to.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.lock
  - kvm.cbt._libvirt.other_hosts
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  domain:
    description:
      - Name or UUID of the domain whose disks to convert.
      - One of O(domain) and O(path) is required.
    type: str
    aliases: [name, guest]
  disk:
    description:
      - Disk targets of O(domain). By default, all disks that can be converted.
    type: list
    elements: str
    aliases: [disks]
  path:
    description:
      - Absolute path of an image that is not a disk of any domain. A RAW image is copied to a new image, and the
        original is kept.
      - Requires O(source_format).
      - The image must not be open in any QEMU process on this host. Use of a block device by another host cannot be
        detected.
    type: path
  source_format:
    description:
      - Format of the image at O(path). The format is never guessed, because a guest can make its RAW disk look like
        an image of another format that has any file of the host as its backing file.
      - Required with O(path). For the disks of O(domain), the format in the domain's definition is used.
    type: str
    choices: [raw, qcow2]
  dest:
    description:
      - Path of the new image, if one is created. By default, it is created beside the original under the same name,
        ending in C(.qcow2), or in C(-v3.qcow2) if the original already ends in C(.qcow2).
      - Required for a disk that is a block device or a logical volume.
    type: path
  compat:
    description:
      - qcow2 version to convert to.
    type: str
    choices: [v3]
    default: v3
  format:
    description:
      - Format to convert to.
    type: str
    choices: [qcow2]
    default: qcow2
  method:
    description:
      - V(auto) uses V(blockcopy) for a running domain, V(amend) for a qcow2 image that is not in use, and V(convert)
        for a RAW image that is not in use.
      - V(amend) changes the image in place. V(convert) copies it. Both require the domain to be shut off, or O(window).
      - V(blockcopy) copies the image while the domain is running.
    type: str
    choices: [auto, amend, convert, blockcopy]
    default: auto
  window:
    description:
      - Whether to shut down a running domain, convert its images and start it again, in place of V(blockcopy).
      - If the conversion fails, the domain is started with its originals. If the module is killed during the
        conversion, the domain stays off.
    type: bool
    default: false
  shutdown_timeout:
    description:
      - Time to wait for the guest to shut down with O(window), such as V(90) (seconds), V(15m), V(24h) or V(7d). After
        that, the module fails without having changed anything.
    type: str
    default: 5m
  keep_original:
    description:
      - Whether to keep the original of a copied image permanently.
    type: bool
    default: false
  scratch_dir:
    description:
      - Directory on the hypervisor for the scratch file that is used to compare the disk of a running domain with the
        original. See O(kvm.cbt.cbt_backup#module:scratch_dir) for directories that are refused.
    type: path
    default: /var/tmp
notes:
  - Images with internal snapshots, encrypted images and images with an external data file are converted with V(amend)
    only. The same applies to the disks of a domain that has snapshots or a saved state.
  - An image that does not record the format of its backing file is refused, because libvirt and QEMU would have to
    guess it.
requirements:
  - qemu-img
seealso:
  - module: kvm.cbt.cbt_checkpoint_info
  - module: kvm.cbt.cbt_backup
"""

EXAMPLES = r"""
- name: Convert all disks of web1 that cannot be tracked, whether it is running or not
  kvm.cbt.cbt_image:
    domain: web1

- name: Convert one disk of db1 to an image on another file system and keep the original
  kvm.cbt.cbt_image:
    domain: db1
    disk: vdb
    dest: /srv/images/db1-data.qcow2
    keep_original: true

- name: Shut down mail1, convert its disks and start it again
  kvm.cbt.cbt_image:
    domain: mail1
    window: true
    shutdown_timeout: 10m

- name: Convert a template's image to version 3
  kvm.cbt.cbt_image:
    path: /var/lib/libvirt/images/template.qcow2
    source_format: qcow2
"""

RETURN = r"""
images:
  description: Images that were converted, or would be.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target. None with O(path).
      type: str
      sample: vda
    path:
      description: Path of the converted image.
      type: str
      sample: /var/lib/libvirt/images/web1-v3.qcow2
    method:
      description:
        - How the image was converted. V(finish) completes the conversion of an earlier run, whose original was still
          there because the domain had not been seen running.
      type: str
      choices: [amend, convert, blockcopy, finish]
      sample: blockcopy
    before:
      description: Original format of the image, and for qcow2 its compatibility level.
      type: dict
      contains:
        format:
          description: Format.
          type: str
          sample: qcow2
        compat:
          description: Compatibility level, V(0.10) for version 2. None for RAW.
          type: str
          sample: "0.10"
    original:
      description: Path of the original. None if it was removed or changed in place, and in check mode.
      type: str
      sample: /var/lib/libvirt/images/web1.qcow2
left:
  description: Disks that were not converted, or would not be.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: sda
    reason:
      description: Why the disk is not converted.
      type: str
      sample: "sda is a cdrom: removable media are not part of a backup."
actions:
  description: Actions that were performed, or would be.
  returned: always
  type: list
  elements: str
  sample: ["vda of web1 (/var/lib/libvirt/images/web1.qcow2): qcow2 v2 to qcow2 v3 by amend, in place"]
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.convert.convert import (
    ConversionResult,
    Converted,
    convert_disks,
    convert_image,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.convert.plan import ConversionOptions


def _image(image: Converted) -> dict[str, object]:
    shown = {key: getattr(image, key) for key in ("target", "path", "method", "original")}
    return {**shown, "before": {"format": image.format, "compat": image.compat}}


_VERSIONS = {"0.10": "qcow2 v2", "1.1": "qcow2 v3"}


def _diff(images: t.Iterable[Converted]) -> dict[str, object]:
    """The formats of the images, by target or, without a domain, by the new path."""
    named = {image.target or image.path: image for image in images}
    before = {name: _VERSIONS.get(image.compat or "", image.format) for name, image in named.items()}
    after = {name: f"qcow2 v3, {image.path}" for name, image in named.items()}
    return {"before": {"images": before}, "after": {"images": after}}


def _convert(module: AnsibleModule) -> ConversionResult:
    params = module.params
    options = ConversionOptions(
        method=params["method"],
        window=params["window"],
        dest=params["dest"],
        keep_original=params["keep_original"],
        scratch_dir=params["scratch_dir"],
        shutdown_timeout=params["shutdown_timeout"],
        others=_hypervisor.other_hosts(module),
    )
    control = _runtime.interruptible(module)
    if params["path"] is not None:
        with _hypervisor.session_if_installed(module) as any_session:
            return convert_image(
                any_session,
                os.path.abspath(params["path"]),
                params["source_format"],
                options,
                control,
                module.check_mode,
            )
    _runtime.require(module, "libvirt", "libvirt_qemu", "nbd")
    with _hypervisor.session(module) as session:
        return convert_disks(session, params["domain"], params["disk"], options, control, module.check_mode)


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.ANY_DOMAIN,
            **_options.LIBVIRT,
            **_options.LOCK,
            **_options.OTHER_HOSTS,
            **_options.LOG,
            "disk": {"type": "list", "elements": "str", "aliases": ["disks"]},
            "path": {"type": "path"},
            "source_format": {"type": "str", "choices": ["raw", "qcow2"]},
            "dest": {"type": "path"},
            "compat": {"type": "str", "choices": ["v3"], "default": "v3"},
            "format": {"type": "str", "choices": ["qcow2"], "default": "qcow2"},
            "method": {"type": "str", "choices": ["auto", "amend", "convert", "blockcopy"], "default": "auto"},
            "window": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "str", "default": "5m"},
            "keep_original": {"type": "bool", "default": False},
            "scratch_dir": {"type": "path", "default": "/var/tmp"},
        },
        required_one_of=[("domain", "path")],
        mutually_exclusive=[("domain", "path"), ("disk", "path"), ("domain", "source_format")],
        required_by={"path": ("source_format",)},
        supports_check_mode=True,
    )
    with _runtime.reported(module):
        result = _convert(module)
    for note in result.notes:
        module.warn(note)
    actions = [image.text for image in result.images]
    module.exit_json(
        changed=bool(result.images),
        images=[_image(image) for image in result.images],
        left=[{"target": target, "reason": reason} for target, reason in result.left],
        actions=actions,
        diff=_diff(result.images),
    )


if __name__ == "__main__":
    main()
