# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Zstandard from the module that this Python has for it.

Both classes have the same interface and may be used from several threads. They never return more than the length of a
block, regardless of the size that a frame declares.
"""

from __future__ import annotations

import functools
import threading
import typing as t

from ...files import Buffer

_WINDOW_LOG = 17  # more than a block ever needs


class ZstandardModule:
    """The module zstandard, which distributions package.

    Each thread has contexts of its own: two threads must not use one at once, and creating one is slow.
    """

    def __init__(self, module: t.Any) -> None:
        self._module = module
        self._contexts = threading.local()
        self.error: type[Exception] = module.ZstdError

    def _context(self, name: str, make: t.Callable[[], t.Any]) -> t.Any:
        if not hasattr(self._contexts, name):
            setattr(self._contexts, name, make())
        return getattr(self._contexts, name)

    def compress(self, data: Buffer, level: int) -> bytes:
        """Return one frame that contains the data; ``level`` is 1 to 22."""
        context = self._context(f"compressor{level}", lambda: self._module.ZstdCompressor(level=level))
        return t.cast(bytes, context.compress(data))

    def decompress(self, payload: Buffer, length: int) -> bytes:
        """Return at most ``length`` bytes of the content of a frame. Raises ``error``."""
        # It allocates the size that a frame declares, even if that exceeds the limit. Only frames without one are
        # limited.
        if self._module.frame_content_size(payload) not in (length, -1):
            raise self.error("the frame promises another length")
        context = self._context("decompressor", lambda: self._module.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG))
        return t.cast(bytes, context.decompress(payload, max_output_size=length))


class StandardLibrary:
    """The module compression.zstd of Python 3.14 and later."""

    def __init__(self, module: t.Any) -> None:
        self._module = module
        self.error: type[Exception] = module.ZstdError

    def compress(self, data: Buffer, level: int) -> bytes:
        return t.cast(bytes, self._module.compress(data, level))

    def decompress(self, payload: Buffer, length: int) -> bytes:
        options = {self._module.DecompressionParameter.window_log_max: _WINDOW_LOG}
        engine = self._module.ZstdDecompressor(options=options)
        data = engine.decompress(payload, length)
        if not engine.eof:
            raise self.error("the frame does not end where it should")
        return t.cast(bytes, data)


@functools.cache
def installed() -> ZstandardModule | StandardLibrary | None:
    """Return the Zstandard module that this Python has, or None.

    It is loaded when it is first needed, because that takes time.
    """
    try:
        import zstandard

        return ZstandardModule(zstandard)
    except ImportError:
        pass
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        return StandardLibrary(zstd)
    except ImportError:
        return None
