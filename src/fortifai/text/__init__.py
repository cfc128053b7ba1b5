"""Text: a language model, trained again and again."""
