"""Run folders: the only truth about a run, for the job that writes one and for everything that reads it.

`folder` holds the files, `status` says whether the job lives, `control` carries requests to it, and `listing` finds
runs below a folder. docs/run-folder.md is the contract.
"""
