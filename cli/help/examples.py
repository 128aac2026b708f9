"""Calls that show what a command is for: command -> (what to write, what it does). Data only, loaded by `help`.

Every command has at least one, and each is a call that the command would accept (tests/unit/test_help.py).
"""

from __future__ import annotations

_SESSION = (
    "SessionId=1111111111111111111111111111111111111111111111111111111111111111 "
    "ConnectionId=2222222222222222222222222222222222222222 KeyEpoch=0 PacketNumber=65536 "
    "TxKey=33333333333333333333333333333333 RxKey=44444444444444444444444444444444 "
    "TxHpKey=55555555555555555555555555555555 RxHpKey=66666666666666666666666666666666 "
    "TxIv=777777777777777777777777 RxIv=888888888888888888888888"
)

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "help": (
        ("qre-tool help daemon", "all about one command; `qre-tool daemon --help` says the same"),
        ("qre-tool help --man | man -l -", "read the manual page of this version"),
    ),
    "version": (("qre-tool version", "which version is installed"),),
    "completion": (
        (
            "qre-tool completion bash > /usr/share/bash-completion/completions/qre-tool",
            "for everybody who uses bash, with the package bash-completion; takes effect in a new shell",
        ),
        ("source <(qre-tool completion bash)", "for this bash alone, without that package"),
        ("qre-tool completion zsh > /usr/local/share/zsh/site-functions/_qre-tool", "the same for zsh"),
        ("qre-tool completion fish > ~/.config/fish/completions/qre-tool.fish", "for your own fish"),
    ),
    "check": (
        ("sudo qre-tool check", "can this machine run QRE, and are its files valid?"),
        ("sudo qre-tool check server0", "can this profile run now? Tries its Dest and its port"),
        ("sudo qre-tool --json check client0", "the same as JSON"),
        ("sudo qre-tool check --ready server0", "does its daemon work now? A health check: 0 or 2, one line"),
    ),
    "find-dest": (
        ("qre-tool find-dest www.example.org www.example.net:8443", "which of two sites is the better Dest?"),
        ("qre-tool --json find-dest --file sites.txt TimeLimit=10m", "many, as JSON"),
        ("qre-tool find-dest www.example.org@192.0.2.7:443", "a certain address of a site"),
    ),
    "init": (
        (
            "sudo qre-tool init Endpoint=vpn.example.net:443 Dest=www.example.org:443",
            "server0.conf and client0.conf, which fit each other",
        ),
        (
            "sudo qre-tool init Endpoint=192.0.2.1:443 Dest=www.example.org:443 ClientProfile=laptop "
            "AllowedIPs=0.0.0.0/0",
            "a client that sends everything through the tunnel",
        ),
    ),
    "genkey": (
        ("(umask 077; qre-tool genkey > private.key)", "RealityPrivateKey of a server, readable by you alone"),
    ),
    "pubkey": (("qre-tool pubkey < private.key", "RealityPublicKey for its clients"),),
    "genshortid": (("qre-tool genshortid", "one for RealityShortIds of the server, and for one client"),),
    "add-client": (
        ("sudo qre-tool add-client server0 alice", "the next free address; a code for her telephone's camera"),
        (
            "sudo qre-tool add-client server0 office Address=10.77.0.9 AllowedIPs=192.168.7.0/24 File=office.conf",
            "with a network behind it; into a file that nobody else can read",
        ),
    ),
    "list-clients": (
        ("sudo qre-tool list-clients server0", "who is connected, from where, who was when"),
        ("sudo qre-tool --json list-clients server0", "the same as JSON"),
    ),
    "export": (
        ("sudo qre-tool export server0 alice", "all forms again"),
        (
            "(umask 077; sudo qre-tool export server0 alice As=link | qrencode -t PNG -o alice.png)",
            "the link alone, for a program",
        ),
    ),
    "rename-client": (("sudo qre-tool rename-client server0 alice alice-laptop", "her session goes on"),),
    "remove-client": (("sudo qre-tool remove-client server0 alice", "she is out within two seconds"),),
    "rotate-key": (
        ("sudo qre-tool rotate-key server0", "a week's time for the clients to get their new links"),
        ("sudo qre-tool rotate-key server0 For=0", "the key is known to others: who has the old one is locked out"),
    ),
    "import": (
        ("sudo qre-tool import -", "paste the link, then Enter and Ctrl-D"),
        ("sudo qre-tool import alice.conf Profile=home", "a file, as the profile home"),
    ),
    "strip": (
        ("sudo qre-tool strip client0", "the profile client0 with all its defaults, its key hidden"),
        (
            "(umask 077; sudo qre-tool strip --show-keys server0 > server0.json)",
            "its key, too, for you alone",
        ),
    ),
    "showconf": (
        ("qre-tool showconf /etc/qre/qre.conf", "is the global file valid, and what does it set?"),
        ("qre-tool showconf ./server0.conf > /dev/null", "only check a profile: exit status 0 or 2"),
    ),
    "up": (
        ("qre-tool --dry-run up client0", "what would be done, one operation a line"),
        ("sudo qre-tool up client0", "make its device ready; a daemon started later takes it over"),
    ),
    "reload": (("sudo qre-tool reload client0", "apply the changed file; sessions go on"),),
    "down": (("sudo qre-tool down client0", "also after a crash: it removes what is left"),),
    "daemon": (
        ("sudo qre-tool daemon server0", "serve until Ctrl-C"),
        (
            "sudo qre-tool daemon client0 --config-dir ./profiles --state-dir /tmp/qre",
            "a profile of another directory",
        ),
        ("qre-tool --dry-run daemon server0", "what it would do"),
    ),
    "show": (
        ("sudo qre-tool show", "every device"),
        ("sudo qre-tool show server0 alice", "one client, whole"),
        ("sudo qre-tool --json show qre0", "one device, as JSON"),
    ),
    "watch": (
        ("sudo qre-tool watch", "every device, drawn again each second, until Ctrl-C"),
        ("sudo qre-tool watch qre0 Interval=5 Count=12 >> qre0.log", "a minute of one device, into a file"),
    ),
    "metrics": (
        ("sudo qre-tool metrics", "every device"),
        ("sudo qre-tool metrics server0 > /var/lib/node_exporter/qre.prom", "one device, into a file"),
    ),
    "refresh": (("sudo qre-tool refresh server0", "does Dest still answer, and how does it look?"),),
    "syncconf": (("sudo qre-tool syncconf qre0 /etc/qre/dev/qre0.conf", "the file's Device must be qre0"),),
    "set": (
        (
            "sudo qre-tool set qre0 role server Address=10.77.0.1/24 Listen=192.0.2.1:443 MTU=1380 "
            "Dest=www.example.org:443 ServerName=www.example.org",
            "a server's device with placeholder keys",
        ),
        (
            "sudo qre-tool set qre1 role client Address=10.77.0.2/24 Endpoint=192.0.2.1:443 MTU=1380 "
            "sni=www.example.org",
            "a client's",
        ),
    ),
    "delete": (("sudo qre-tool delete qre0", "the device, its sessions and its connection IDs"),),
    "install-session": (
        (
            f"sudo qre-tool install-session qre0 {_SESSION}",
            "`qre-tool session-plan` prints such calls, ready to paste",
        ),
    ),
    "update-session": (
        (
            f"sudo qre-tool update-session qre0 {_SESSION}",
            "the same fields; KeyEpoch is the current one, or one more",
        ),
    ),
    "adopt-cid": (("sudo qre-tool adopt-cid qre0 ConnectionId=2222222222222222222222222222222222222222", ""),),
    "release-cid": (("sudo qre-tool release-cid qre0 ConnectionId=2222222222222222222222222222222222222222", ""),),
    "session-demo": (("sudo qre-tool session-demo server0.conf client0.conf", "two devices that hold one session"),),
    "session-capture": (
        (
            "qre-tool session-capture valid-client server0.conf client0.conf handshake.pcap KeyLog=true",
            "then: tshark -o tls.keylog_file:handshake.pcap.keys -r handshake.pcap",
        ),
        ("qre-tool session-capture wrong-sni server0.conf client0.conf refused.pcap", "what a stranger sends"),
    ),
    "shared-port-loader": (
        (
            "sudo qre-tool shared-port-loader BpfElf=./bpf/qre_reuseport.bpf.o Listen=127.0.0.1:4443 "
            "UserspaceBind=true",
            "hold a port as a server's daemon does, until Ctrl-C",
        ),
    ),
    "shared-port-loader-check": (
        (
            "sudo qre-tool shared-port-loader-check BpfElf=./bpf/qre_reuseport.bpf.o Listen=127.0.0.1:4443 "
            "ConnectionId=2222222222222222222222222222222222222222 RegisterCidMap=false",
            "does this kernel steer packets? Without qre.ko",
        ),
    ),
    "shared-port-session-demo": (
        (
            "sudo qre-tool shared-port-session-demo server0.conf client0.conf BpfElf=./bpf/qre_reuseport.bpf.o "
            "RunForMs=5000",
            "a handshake over UDP, and both sessions in the kernel for five seconds",
        ),
    ),
    "shared-port-handshake-daemon": (
        (
            "sudo qre-tool shared-port-handshake-daemon server0.conf server1.conf BpfElf=./bpf/qre_reuseport.bpf.o",
            "two devices behind one port",
        ),
    ),
    "shared-port-handshake-client": (
        ("qre-tool shared-port-handshake-client client0.conf", "does the server know us? Installs nothing"),
    ),
    "session-plan": (
        ("(umask 077; qre-tool session-plan server0.conf client0.conf > plan)", "needs no root, no network"),
        (
            "qre-tool session-plan server0.conf client0.conf ServerUnderlay=192.0.2.1:443 "
            "ClientUnderlay=198.51.100.7:50443",
            "with other outer addresses than the files say",
        ),
    ),
    "create-cid-map": (("sudo qre-tool create-cid-map BpfMapPath=/sys/fs/bpf/qre-cid-routes", ""),),
    "create-reuseport-socket-map": (
        ("sudo qre-tool create-reuseport-socket-map BpfMapPath=/sys/fs/bpf/qre-sockets", ""),
    ),
    "register-cid-map": (("sudo qre-tool register-cid-map BpfMapPath=/sys/fs/bpf/qre-cid-routes", ""),),
    "unregister-cid-map": (("sudo qre-tool unregister-cid-map", ""),),
    "register-shared-socket": (
        ("sudo qre-tool register-shared-socket SocketFd=3", "descriptor 3, which a program opened before"),
    ),
    "unregister-shared-socket": (("sudo qre-tool unregister-shared-socket", ""),),
    "show-cid-map": (
        ("sudo qre-tool show-cid-map BpfMapPath=/sys/fs/bpf/QRE_CID_ROUTES-server0", "the map of a running daemon"),
        ("sudo qre-tool --json show-cid-map BpfMapPath=/sys/fs/bpf/qre-cid-routes", "as JSON"),
    ),
}
