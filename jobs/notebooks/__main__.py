"""``python -m jobs.notebooks``: run the notebooks (see ``run``)."""

import sys

from jobs.notebooks.run import main

sys.exit(main())
