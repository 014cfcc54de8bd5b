"""Write a network in the format of a runtime, and compare it there."""
