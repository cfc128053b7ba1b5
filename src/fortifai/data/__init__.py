"""Corpora, questions and splits."""
