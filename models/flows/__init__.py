"""Normalising flows: a simple base density carried through bijections."""
