"""The contract test for plug-ins of your own: `python -m fmeco.testing FILE`, or `check_plugin(FILE)` from Python."""
