"""One module a command. `revvideo X ...` and `python tools/X.py ...` are the same."""
