"""``python -m autocompress`` is the command line."""

import sys

from autocompress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
