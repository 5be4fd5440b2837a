"""Coverage-guided fuzzing of one reader, with atheris (`pip install atheris`).

    python tests/fuzz/fuzz_readers.py voc|coco|yaml|detections|checkpoint CORPUS -max_total_time=600

CORPUS is a folder: inputs that reach new code are kept there, and the seeds are put into it. The
options are libFuzzer's. A finding ends it with a traceback and leaves the input in the current
folder.
"""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

with atheris.instrument_imports(include=["data", "engine", "yaml"]):
    import targets


def main() -> None:
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[name]):
        (corpus / f"seed{number}").write_bytes(seed)
    target = getattr(targets.Fuzzed(), name)
    counts = {True: 0, False: 0}

    def one(content: bytes) -> None:
        counts[targets.accepts(target, content)] += 1

    atexit.register(lambda: print(f"{name}: {counts[True]} accepted, {counts[False]} refused"))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
