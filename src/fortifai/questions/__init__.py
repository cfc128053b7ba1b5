"""Writing Knowledge Retention questions, and checking those that somebody wrote."""
