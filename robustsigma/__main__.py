"""`python -m robustsigma`, for where the script is not on the path."""

import sys

from robustsigma.cli import main

if __name__ == "__main__":
    sys.exit(main())
