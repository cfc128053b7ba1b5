"""One file a family of generative models."""
