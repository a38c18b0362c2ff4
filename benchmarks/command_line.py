"""How a result came about, without the folders of the machine that made it."""

import sys
from pathlib import Path


def command() -> str:
    """The command of this process: of each path its last part only."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(Path(word).name for word in sys.argv[1:])])
