"""The recursive loop: regimes, seeds, store, executor. It knows protocols, not families."""
