"""Image files to pixels to tiles."""
