"""The Inspect model provider `esr/NAME`."""
