"""The admin's commands: a noun, a verb, `--json` and `--csv` on every listing; one file per noun.

`app` opens the session and turns errors into one line and an exit code; `output` is the only printer of
listings. `weir` itself is `proxy/main.py`, which mounts these commands and adds `serve`.
"""
