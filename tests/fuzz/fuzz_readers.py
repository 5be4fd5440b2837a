"""Coverage-guided fuzzing of one reader, with atheris (`pip install atheris`).

    python tests/fuzz/fuzz_readers.py voc|coco|yaml|detections|checkpoint CORPUS -max_total_time=600

CORPUS is a folder: inputs that reach new code are kept there, and the seeds are put into it; their
words stand in CORPUS.dict, because random bytes alone seldom become well-formed XML or JSON. The
options are libFuzzer's. A finding ends it with a traceback and leaves the input in the current
folder.
"""

from __future__ import annotations

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
    words = Path(f"{corpus}.dict")
    entries = map(escaped, targets.words_of(*targets.SEEDS[name]))
    words.write_text("".join(f'"{entry}"\n' for entry in entries))
    target = getattr(targets.Fuzzed(), name)
    counts = {True: 0, False: 0}

    def one(content: bytes) -> None:
        counts[targets.accepts(target, content)] += 1
        if sum(counts.values()).bit_count() == 1:  # libFuzzer ends without a chance for a last word
            print(f"{name}: {counts[True]} accepted, {counts[False]} refused", flush=True)

    atheris.Setup([sys.argv[0], *sys.argv[2:], f"-dict={words}"], one)
    atheris.Fuzz()


def escaped(word: bytes) -> str:
    """As libFuzzer's dictionaries write bytes."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
