"""Where the process begins. Ctrl-C ends it quietly while its modules load; from then on `cli.main` answers to it."""

import signal


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from installer import cli

    cli.main()


if __name__ == "__main__":
    main()
