"""What is wrong with a posterior, a program or an algorithm, and how sure that is."""
