"""What steering and the whole paper cost: FLOP, bytes, hours, money. Imports no torch."""
