"""The fuzzed targets are shared with the runner that is guided by coverage."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
