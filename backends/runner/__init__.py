"""The C++ runner that executes an artifact with no Python on the device."""
