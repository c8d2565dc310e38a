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
  - Makes RAW images and qcow2 images of version 2, which hold no bitmaps, qcow2 images of version 3.
  - A running domain's disks are copied while the guest writes, and the guest goes over to the copy without noticing (C(blockcopy)).
    The images of a domain that is shut off are changed in place (C(amend), for qcow2) or copied (C(convert), for RAW).
  - The original of a copied image is kept until the copy was compared with it and the domain was seen running on the copy. It is removed then,
    unless O(keep_original) is set, another image rests on it, or it is a device.
    A link beside the new image, with C(.cbt-original-raw) or C(.cbt-original-qcow2) appended to its name, leads to an original that is kept for this
    and records its format.
  - If something fails, what was begun is undone, and the domain goes on with the original. A run that was killed is taken up by the next one.
  - A backing file stays where it is, and stays the backing file of the new image. Nothing is ever written to it.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
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
      - Name or UUID of the domain whose disks are meant.
      - One of O(domain) and O(path) is required.
    type: str
    aliases: [name, guest]
  disk:
    description:
      - Disk targets of O(domain). All disks that can be converted, if it is left out.
    type: list
    elements: str
    aliases: [disks]
  path:
    description:
      - Absolute path of an image that is no domain's disk. RAW is copied to a new image, and the original stays.
      - Requires O(source_format). The image must not be open in any QEMU process on this host. A block device that another host uses cannot be detected.
    type: path
  source_format:
    description:
      - Format of the image at O(path). The format is never guessed, because a guest can make its RAW disk look like an image of another format
        with any file of the host as its backing file.
      - Required with O(path). The disks of O(domain) have the format that the definition of the domain names.
    type: str
    choices: [raw, qcow2]
  dest:
    description:
      - Path of the new image, where one is made. By default it lies beside the original and is named like it, ending in C(.qcow2) or,
        where the original does, in C(-v3.qcow2).
      - Required for a disk that is a block device or a logical volume.
    type: path
  compat:
    description:
      - Version of qcow2 to have.
    type: str
    choices: [v3]
    default: v3
  format:
    description:
      - Format to have.
    type: str
    choices: [qcow2]
    default: qcow2
  method:
    description:
      - V(auto) takes V(blockcopy) for a running domain, V(amend) for a qcow2 image that nobody uses and V(convert) for a RAW one.
      - V(amend) changes the image in place at once. V(convert) copies it. Both want the domain to be off, or O(window).
      - V(blockcopy) copies it while the domain runs.
    type: str
    choices: [auto, amend, convert, blockcopy]
    default: auto
  window:
    description:
      - Whether to shut a running domain down, convert its images and start it again, in place of V(blockcopy).
      - If the conversion fails, the domain is started on its originals. If the module is killed meanwhile, the domain stays off.
    type: bool
    default: false
  shutdown_timeout:
    description:
      - Seconds that the guest has to shut down in with O(window). After that the module fails, and nothing was changed.
    type: int
    default: 300
  keep_original:
    description:
      - Whether to keep the original of a copied image for good.
    type: bool
    default: false
  scratch_dir:
    description:
      - Directory on the hypervisor for the scratch file of comparing the disk of a running domain with the original.
        See O(kvm.cbt.cbt_backup#module:scratch_dir) for directories that are refused.
    type: path
    default: /var/tmp
notes:
  - An image with internal snapshots, an encrypted one and one with a data file of its own are converted by V(amend) only.
    So are the disks of a domain that has snapshots or a saved state.
  - An image that does not name the format of its backing file is refused, because libvirt and QEMU would have to guess it.
requirements:
  - qemu-img
seealso:
  - module: kvm.cbt.cbt_checkpoint_info
  - module: kvm.cbt.cbt_backup
"""

EXAMPLES = r"""
- name: Convert what cannot be tracked of web1, running or not
  kvm.cbt.cbt_image:
    domain: web1

- name: Convert one disk of db1 to another file system and keep the original
  kvm.cbt.cbt_image:
    domain: db1
    disk: vdb
    dest: /srv/images/db1-data.qcow2
    keep_original: true

- name: Convert the disks of mail1 while it is down
  kvm.cbt.cbt_image:
    domain: mail1
    window: true
    shutdown_timeout: 600

- name: Make a template's image one of version 3
  kvm.cbt.cbt_image:
    path: /var/lib/libvirt/images/template.qcow2
    source_format: qcow2
"""

RETURN = r"""
images:
  description: The images that were, or would be, converted.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target; none with O(path).
      type: str
      sample: vda
    path:
      description: Where the converted image lies.
      type: str
      sample: /var/lib/libvirt/images/web1-v3.qcow2
    method:
      description:
        - How it was done. V(finish) is the end of a conversion before this run, whose original was still there
          because the domain had not been seen running.
      type: str
      choices: [amend, convert, blockcopy, finish]
      sample: blockcopy
    before:
      description: Format of the image before, and for qcow2 its compatibility level.
      type: dict
      contains:
        format:
          description: Format.
          type: str
          sample: qcow2
        compat:
          description: Compatibility level, V(0.10) for version 2; none for RAW.
          type: str
          sample: "0.10"
    original:
      description: Where the original lies, none if it was removed or changed in place, and in check mode.
      type: str
      sample: /var/lib/libvirt/images/web1.qcow2
left:
  description: Disks that are not converted, with the reason.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: sda
    reason:
      description: Why not.
      type: str
      sample: "sda is a cdrom: removable media are not part of a backup."
actions:
  description: What was, or would be, done.
  returned: always
  type: list
  elements: str
  sample: ["vda of web1 (/var/lib/libvirt/images/web1.qcow2): qcow2 v2 to qcow2 v3 by amend, in place"]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.convert.convert import (
    ConversionResult,
    Converted,
    convert_disks,
    convert_image,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.convert.plan import Wish
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.convert.run import Manner


def _image(image: Converted) -> dict[str, object]:
    shown = {key: getattr(image, key) for key in ("target", "path", "method", "original")}
    return {**shown, "before": {"format": image.format, "compat": image.compat}}


def _convert(module: AnsibleModule) -> ConversionResult:
    params = module.params
    wish = Wish(params["method"], params["window"], params["dest"], params["keep_original"])
    interrupt = _module.interruptible()
    if params["path"] is not None:
        with _module.session_if_installed(module) as any_session:
            return convert_image(
                any_session,
                os.path.abspath(params["path"]),
                params["source_format"],
                wish,
                interrupt,
                module.check_mode,
            )
    _module.require(module, "libvirt", "libvirt_qemu", "nbd")
    manner = Manner(params["scratch_dir"], params["shutdown_timeout"])
    with _module.session(module) as session:
        return convert_disks(session, params["domain"], params["disk"], wish, manner, interrupt, module.check_mode)


def main() -> None:
    """Run the module."""
    module = _module.Module(
        argument_spec={
            **_module.ANY_DOMAIN,
            **_module.LIBVIRT,
            "disk": {"type": "list", "elements": "str", "aliases": ["disks"]},
            "path": {"type": "path"},
            "source_format": {"type": "str", "choices": ["raw", "qcow2"]},
            "dest": {"type": "path"},
            "compat": {"type": "str", "choices": ["v3"], "default": "v3"},
            "format": {"type": "str", "choices": ["qcow2"], "default": "qcow2"},
            "method": {"type": "str", "choices": ["auto", "amend", "convert", "blockcopy"], "default": "auto"},
            "window": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 300},
            "keep_original": {"type": "bool", "default": False},
            "scratch_dir": {"type": "path", "default": "/var/tmp"},
        },
        required_one_of=[("domain", "path")],
        mutually_exclusive=[("domain", "path"), ("disk", "path"), ("domain", "source_format")],
        required_by={"path": ("source_format",)},
        supports_check_mode=True,
    )
    with _module.reported(module):
        result = _convert(module)
    for note in result.notes:
        module.warn(note)
    actions = [image.text for image in result.images]
    module.exit_json(
        changed=bool(result.images),
        images=[_image(image) for image in result.images],
        left=[{"target": target, "reason": reason} for target, reason in result.left],
        actions=actions,
        diff={"before": {"to do": actions}, "after": {"to do": []}},
    )


if __name__ == "__main__":
    main()
