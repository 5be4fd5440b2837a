"""Labels of anchors and proposals that are not matched to an object."""

from __future__ import annotations

BACKGROUND = -1
IGNORED = -2  # neither positive nor background: excluded from the loss
