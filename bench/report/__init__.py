"""Tables, figures and one page from recorded runs: `python -m bench.report`."""
