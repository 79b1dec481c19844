"""Records that come with the package; `python -m graphwright.tools.tune_shipped` makes them."""
