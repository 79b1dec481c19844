"""What a person runs: the command line, reports, benchmarks and the demo."""
