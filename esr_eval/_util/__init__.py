"""Files, paths and text, on the way in and out."""
