"""Define the command line, one file per family of commands. It parses, calls and prints."""
