"""Entry: `accelerate launch genlab/train.py ...`, the same as `genlab train ...` on several processes."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of genlab/, whose modules would shadow others

from genlab.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
