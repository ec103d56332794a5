"""Two workers run the tests on two cores: one thread each, also in the processes they start."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
