# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes nobody has in a test machine, in a process of their own whose memory is all there is. Figures are printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20
ENGINE = str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils")

# The peak of the process itself. That of getrusage begins with what the process had that started it.
MEMORY = """
def memory():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
"""

# Two generations, so that a map is built from its parent's, and both are in memory as in a backup. Workers take 16 blocks at
# a time and append them as they come, up to eight out of order.
SCATTERED = """
import json, random, sys
sys.path.insert(0, sys.argv[1])
from _cbt.repository import maps
from _cbt.repository.packs import PackRef
size, dirty = 20 << 40, 2_000_000
gap = (size >> 16) // dirty
extents = None
for generation in range(2):
    builder = maps.MapBuilder(size, extents)
    chance = random.Random(generation)
    packs = [PackRef(chance.randbytes(16), 64 << 20, 1024) for _number in range(dirty // 1024 + 1)]
    order = list(range(8))
    for number in range(dirty):
        if number % 128 == 0:
            chance.shuffle(order)
        place = number - number % 128 + order[number % 128 // 16] * 16 + number % 16
        builder.place(number * gap + chance.randrange(gap), 1, packs[place // 1024].id, place % 1024)
    extents = builder.finish({ref.id: ref for ref in packs})
    data = extents.encode()
    if list(maps.decode(data).runs(0, 1 << 16)) != list(extents.runs(0, 1 << 16)):
        sys.exit("it came back as something else")
    extents = maps.decode(data)
print(json.dumps({"runs": len(extents), "map": len(data), "memory": memory()}))
"""

# A repository that holds hooks only, made when they are asked for.
HOOKS = """
import json, os, random, sys, time
sys.path.insert(0, sys.argv[1])
from _cbt.repository import hooks
from _cbt.repository.hooks import PackHooks
from _cbt.repository.index import HookIndex
from _cbt.repository.packs import PackRef
from _cbt.repository.repository import Repository
packs = int(sys.argv[2])
class Store:
    def list(self, prefix):
        return iter([f"hooks/domain/session-{number}" for number in range(packs // hooks.PACKS_PER_OBJECT)])
    def get(self, name):
        chance = random.Random(name)
        keys = lambda: tuple(chance.getrandbits(61) for _hook in range(24))
        return hooks.encode([PackHooks(PackRef(chance.randbytes(16), 64 << 20, 1024), keys()) for _pack in range(hooks.PACKS_PER_OBJECT)])
index = HookIndex(Repository(Store(), "r" * 32), folder=sys.argv[3])
started = time.monotonic()
index.refresh()
filled = time.monotonic()
index.refresh()
again = time.monotonic()
chance = random.Random("hooks/domain/session-1")
ref = PackRef(chance.randbytes(16), 64 << 20, 1024)
with index.lookup() as lookup:
    found = list(lookup([chance.getrandbits(61).to_bytes(8, "big")]))
if index.failure or found[:1] != [ref]:
    sys.exit(index.failure or "it was not found")
size = sum(os.stat(os.path.join(folder, each)).st_size for folder, _folders, files in os.walk(sys.argv[3]) for each in files)
print(json.dumps({"filled": round(filled - started, 1), "again": round(again - filled, 3), "file": size, "memory": memory()}))
"""


def measured(program: str, *arguments: str) -> dict[str, Any]:
    """What a program printed, which is a JSON object."""
    printed = subprocess.run([sys.executable, "-c", MEMORY + program, ENGINE, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(printed)
    print(figures)
    return figures


def test_twenty_tebibytes_with_two_million_scattered_dirty_blocks_twice() -> None:
    figures = measured(SCATTERED)
    assert figures["runs"] > 3_900_000
    assert figures["map"] < 64 * MIB
    assert figures["memory"] < 512 * MIB


def test_an_index_is_filled_in_bounded_memory_whatever_the_number_of_packs(tmp_path: Path) -> None:
    few, many = (measured(HOOKS, str(packs), str(tmp_path / str(packs))) for packs in (2 * 4096, 20 * 4096))
    assert many["file"] > 9 * few["file"]
    assert many["memory"] < 256 * MIB
