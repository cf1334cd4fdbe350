"""Load local models where every connection raises, without the test suite's offline switch; prints what was tried."""

import json
import socket
import sys

tried = []


def refuse(self, address, *_):
    tried.append(str(address))
    raise ConnectionRefusedError(f"a local model asked for {address}")


def refuse_name(host, *_, **__):
    tried.append(str(host))
    raise socket.gaierror(f"a local model asked for {host}")


socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse_name

from pathlib import Path  # noqa: E402

from huggingface_hub import constants  # noqa: E402

from hasten.loading.model import LoadOptions, config_of, load  # noqa: E402

assert not constants.HF_HUB_OFFLINE
cache, *names = sys.argv[1:]
options = LoadOptions(cache=Path(cache))
kinds = []
for name in names:
    config_of(name, options)
    kinds.append(load(name, options).source.kind)
print(json.dumps({"kinds": kinds, "tried": tried}))
