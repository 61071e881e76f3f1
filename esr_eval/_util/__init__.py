"""Files, paths, tables of cells and the terminal: the ways in and out."""
