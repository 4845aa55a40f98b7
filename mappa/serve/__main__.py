"""python -m mappa.serve: see program.py."""

import sys

from mappa.serve.program import main

sys.exit(main())
