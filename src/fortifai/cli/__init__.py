"""The command `fortifai`."""

from fortifai.cli.app import app, main

__all__ = ["app", "main"]
