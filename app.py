"""`python app.py [RUNS...]`: open the studio, the same as `genlab studio`."""

import sys

from genlab.cli import main

if __name__ == "__main__":
    main(["studio", *sys.argv[1:]])
