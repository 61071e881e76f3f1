"""Off-topic detectors: finding them, sets of them, and random latents to compare with."""
