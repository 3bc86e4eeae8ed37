"""Published scores, run again: rows, their runs side by side, and their results."""
