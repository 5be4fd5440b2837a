"""Labels of anchors and proposals that are matched to no object."""

from __future__ import annotations

BACKGROUND = -1
IGNORED = -2  # it does not count
