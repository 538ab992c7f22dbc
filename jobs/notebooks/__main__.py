"""``python -m jobs.notebooks``: execute the notebooks (see ``run``)."""

from jobs.notebooks.run import main

main()
