"""Off-topic detectors: discovery, the sets that are ablated, and what they rest on."""
