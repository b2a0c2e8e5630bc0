"""A program's graph drawn as the textbook would: layout, edges, labels, and the formats that it is written
in."""
