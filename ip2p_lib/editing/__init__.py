"""Edit an image by a sentence (sections 3.2.1 and 4; notebooks 06 and 07).

Read ``editor``, from ``Editor.edit`` down to ``sample_edits``; then ``panel``, its
widget.
"""

from ip2p_lib.editing.editor import Editor, load_editor

__all__ = ["Editor", "load_editor"]
