"""The miniature world: images whose every edit has a known ground truth.

A scene is data (``scenes``): one or two objects, a place, a time of day, a season or
weather, an artistic medium. Read ``vocabulary`` (all values), ``world`` (samples scenes
and edits of one attribute), ``phrasings`` (the wordings in ``data/phrasings``) with
``captions`` and ``instructions``, ``parsing`` (the way back), ``render`` with
``backdrop`` and ``media`` (scenes to images, batched in torch), and ``corpus`` (all of
it in bulk). ``judge`` reads images back into attributes. Only ``jobs``, notebooks and
tests import this room; the rest of the library never does.
"""
