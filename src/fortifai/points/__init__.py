"""Points: Gaussians and mixtures, fitted again and again."""
