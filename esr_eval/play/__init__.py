"""A page on this machine: one trial with the boost on and off, side by side."""
