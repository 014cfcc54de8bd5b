"""Run the command line as `python -m dreamstill`."""

import sys

from dreamstill.cli.main import main

sys.exit(main())
