"""The strength of each latent: searched, kept, found again."""
