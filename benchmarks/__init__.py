"""Measurements, run by hand: `python -m benchmarks NAME [options]`; one module with a `main(argv)` is one benchmark."""
