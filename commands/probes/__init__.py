"""Linear probes of hidden states: `python main.py probe`."""
