"""The whole paper as one run: what it takes, its order, and the report at its end."""
