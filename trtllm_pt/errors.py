"""The kinds of error a user meets. The command line prints one line and exits with `exit_status`."""

INSTALL_EMBEDDED = "pip install -e '.[embedded]'"  # what many a message ends with


class TrtllmPtError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_status = 1


class UsageError(TrtllmPtError):
    """The user's mistake, or something that the machine lacks; nothing was written."""

    exit_status = 2


class RunError(TrtllmPtError):
    """A failure while running; the message says what was kept."""

    exit_status = 1
