"""One YAML for each published setting, and the demo."""
