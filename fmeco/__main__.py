"""Start the command line: `python -m fmeco` is the console script `fmeco`."""

import signal


def main() -> None:
    """Handle signals, then import the commands, so that Ctrl-C ends the program cleanly from the beginning."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `signals` is imported
    from fmeco.cli.signals import signals

    signals.install()
    from fmeco.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
