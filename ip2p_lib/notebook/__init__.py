"""What the notebooks show things with: figures, tables, sources, exercises, panels.

No section of the paper is here. Read ``lesson`` (sources, tables, exercises,
parameters), ``figures`` (images and plots), ``style`` (sizes, fonts, colours), then
``panel`` (what the widget panels share).
"""
