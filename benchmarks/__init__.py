"""Side-by-side speed of the simulating engines and their peers: `python -m benchmarks` (or `make bench`)."""
