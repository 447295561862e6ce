"""What training a model costs: memory of a device, seconds of a step; arithmetic shared by plans, dry runs and benchmarks."""
