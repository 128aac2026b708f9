"""A call of every command that would be right, in a directory with the profiles server0 and client0."""

from __future__ import annotations

from pathlib import Path

from qre.workers import bpf_loader

ELF = str(Path(bpf_loader.__path__[0]) / "qre_reuseport.bpf.o")
CID = "22" * 20
_KEYS = (
    f"SessionId={'11' * 32}", f"ConnectionId={CID}", "KeyEpoch=0", "PacketNumber=65536", f"TxKey={'33' * 16}",
    f"RxKey={'44' * 16}", f"TxHpKey={'55' * 16}", f"RxHpKey={'66' * 16}", f"TxIv={'77' * 12}", f"RxIv={'88' * 12}",
)  # fmt: skip
#: The files are there. None: a call without arguments is right, and nothing may follow.
CALLS: dict[str, list[str] | None] = {
    "help": ["daemon"], "version": None, "genkey": None, "pubkey": None, "genshortid": None,
    "unregister-cid-map": None, "unregister-shared-socket": None,
    "init": ["Endpoint=203.0.113.5:443", "Dest=203.0.113.9:443", "ServerName=a.example"],
    "find-dest": ["a.example", "TimeLimit=1s"],
    "completion": ["bash"], "strip": ["server0"], "showconf": ["server0.conf"], "up": ["server0"],
    "reload": ["server0"], "down": ["server0"], "daemon": ["server0"], "show": ["qre9", "alice"],
    "watch": ["qre9", "Count=1"],
    "check": ["server0"], "refresh": ["qre9"], "syncconf": ["server0", "server0.conf"], "delete": ["qre9"],
    "set": ["qre9", "role", "client", "Address=10.77.0.2/24", "Endpoint=a.example:443", "MTU=1380", "sni=a.example"],
    "install-session": ["qre9", *_KEYS], "update-session": ["qre9", *_KEYS],
    "adopt-cid": ["qre9", f"ConnectionId={CID}"], "release-cid": ["qre9", f"ConnectionId={CID}"],
    "session-demo": ["server0.conf", "client0.conf"], "session-plan": ["server0.conf", "client0.conf"],
    "session-capture": ["valid-client", "server0.conf", "client0.conf", "made.pcap"],
    "create-cid-map": ["BpfMapPath=/nonexistent/map"], "create-reuseport-socket-map": ["BpfMapPath=/nonexistent/map"],
    "register-cid-map": ["BpfMapPath=/nonexistent/map"], "show-cid-map": ["BpfMapPath=/nonexistent/map"],
    "register-shared-socket": ["SocketFd=0"],
    "shared-port-loader": [f"BpfElf={ELF}", "Listen=127.0.0.1:4443", "UserspaceBind=true", "RegisterCidMap=false"],
    "shared-port-loader-check": [
        f"BpfElf={ELF}", "Listen=127.0.0.1:4443", f"ConnectionId={CID}", "RegisterCidMap=false",
    ],
    "shared-port-session-demo": ["server0.conf", "client0.conf", f"BpfElf={ELF}"],
    "shared-port-handshake-daemon": ["server0.conf", f"BpfElf={ELF}"],
    "shared-port-handshake-client": ["client0.conf"], "add-client": ["server0", "alice"],
    "list-clients": ["server0"], "export": ["server0", "client0"], "remove-client": ["server0", "alice"],
    "rename-client": ["server0", "client0", "home"], "import": ["client0.conf", "Profile=other"],
    "rotate-key": ["server0"], "metrics": ["qre9"],
}  # fmt: skip
