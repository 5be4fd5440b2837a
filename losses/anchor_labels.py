"""What an anchor or a proposal is called that answers for no object."""

from __future__ import annotations

BACKGROUND = -1
IGNORED = -2  # it does not count
