# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be put away at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing(ABC):
    """A part of the lab that is used as a context manager, or closed by hand."""

    @abstractmethod
    def close(self) -> None:
        """Remove every trace; may be called twice."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_what: object) -> None:
        self.close()
