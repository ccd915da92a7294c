"""camkit: benchmark class activation maps (CAMs) over ImageNet."""
