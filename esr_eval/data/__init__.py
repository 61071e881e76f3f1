"""Facts shipped with the package: subjects, topics, latents."""
