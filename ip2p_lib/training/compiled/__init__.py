"""Compile the editor's U-Net for training on a GPU (section 3.2; ours).

``compile`` compiles its blocks or all of it; ``layers`` has the layers it then uses,
which the compiler can fuse. The training speeds in ``data/results`` rest on both.
"""
