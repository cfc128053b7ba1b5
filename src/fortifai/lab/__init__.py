"""The recursive loop and the experiment around it: it knows protocols, no kind of data."""
