"""Run the notebooks, write them back with their outputs, make one report of them.

``run`` executes (``make run``, ``make notebooks``) after ``parameters`` has checked the
settings, ``html_report`` makes the page, ``publish`` and ``outputs`` write what is
committed (``make publish``), ``address`` sets the links to Colab (``make address``).
"""
