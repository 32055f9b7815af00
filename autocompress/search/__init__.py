"""The space of plans, the exact allocation, the study that searches above it, and its front."""
