"""What a training step costs here, and what it costs with the tools people use today: `python -m benchmarks.core`."""
