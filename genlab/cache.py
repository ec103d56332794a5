"""Entry: `accelerate launch genlab/cache.py ...`, the same as `genlab cache ...` on several processes."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of genlab/, whose modules would shadow others

from genlab.cli import main

if __name__ == "__main__":
    main(["cache", *sys.argv[1:]])
