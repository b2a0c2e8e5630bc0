"""What the samplers of many chains share: the driver, warm-up, metrics, dynamics, checkpoints."""
