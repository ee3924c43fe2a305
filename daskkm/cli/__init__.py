"""Commands: options, progress, exit status."""
