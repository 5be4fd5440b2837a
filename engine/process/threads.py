"""Limit how long CPU threads of this process spin while waiting for each other."""

from __future__ import annotations

import os

# GNU OpenMP, which torch's Linux packages use, lets a thread spin for milliseconds before it
# sleeps. Where loader processes share the cores, the thread it waits for is often not running, and
# every parallel region costs a time slice (docs/results.md: a step 25 times slower beside one
# busy process). A short spin costs nothing measurable on an idle machine.
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", "5000"


def limit_spinning() -> None:
    """Set a short spin unless the user chose one; call it before torch is imported."""
    os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)
