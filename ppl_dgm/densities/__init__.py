"""The parts of a LogDensity: its coordinates, the joint density of one program, sums over discrete sites."""
