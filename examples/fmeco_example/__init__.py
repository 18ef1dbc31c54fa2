"""Plug-ins for fmeco: motions of a body, as an accelerometer measures them."""
