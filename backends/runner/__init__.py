"""The runner: a small C++ program that runs an artifact where there is no Python, here or emulated."""
