"""The `mpt-fast` command. Nothing here imports torch before a command needs it."""


def main() -> None:
    """Entry point of `mpt-fast`; ends the process with status 0, 1 (failed) or 2 (wrong usage)."""
    from mpt_fast.cli.app import app

    app(prog_name="mpt-fast")


__all__ = ["main"]
