"""Programs to begin with: every one a few lines from a textbook, every answer exact."""
