"""Numbers of clustered trials: rates, means, differences, tests. Reads no log."""
