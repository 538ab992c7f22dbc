"""Write the README's table, drawing and images, and docs/results.md (``table``)."""
