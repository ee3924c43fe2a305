"""Find and read image files, and cut images into tiles."""
