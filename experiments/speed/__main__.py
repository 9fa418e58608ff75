"""python -m experiments.speed."""

import sys

from experiments.speed.run import main

if __name__ == "__main__":
    sys.exit(main())
