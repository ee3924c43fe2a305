"""Result files and pictures of a sweep."""
