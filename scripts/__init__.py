"""What makes the site and checks the package; nothing here is installed."""
