"""Storage backends behind one contract: memory, local and rbd."""
