# shellcheck shell=bash disable=SC2086,SC2034,SC1091
# Daemons on qre.ko as services: source it after lib.sh. A service is named by its namespace, and a number if it is
# not the first there: a is the profile server0 in namespace a, b2 the profile client1 in namespace b.
export QRE_CONFIG_DIR=/tmp/e/dev QRE_BPF_PIN_DIR=/tmp/bpf QRE_TEST_REKEY_AFTER=2500
export PYTHONPATH=$CHECKOUT
PYTHON=$CHECKOUT/.venv/bin/python

# Profiles and directories.
daemons_init() {
	mkdir -p /tmp/e/dev /tmp/sa /tmp/sb /run/qa /run/qb /tmp/bpf
	chmod 755 /tmp /tmp/e
	mountpoint -q /tmp/bpf || mount -t bpf bpf /tmp/bpf
	# No site here: the server answers as one would.
	printf '%s\n' "Dataplane = kernel" "RuntimeDir = /run/qa" "StateDir = /tmp/sa" "WhenDestIsDown = imitate" >/tmp/e/a.conf
	printf '%s\n' "Dataplane = kernel" "RuntimeDir = /run/qb" "StateDir = /tmp/sb" >/tmp/e/b.conf
	rm -f /tmp/e/dev/*.conf
	QRE_GLOBAL_CONFIG=/tmp/e/a.conf $QRE init ServerProfile=server0 ClientProfile=client0 Endpoint="$(place $IP_A):443" \
		Dest="$(place $IP_B):443" ServerName=example.com ServerAddress=10.77.0.1/24 ClientAddress=10.77.0.2/24
}

# An address as it stands before a port.
place() { case $1 in *:*) echo "[$1]" ;; *) echo $1 ;; esac; }

# Profiles of a second server on the same port, and of its client.
second_init() {
	QRE_GLOBAL_CONFIG=/tmp/e/a.conf $QRE init ServerProfile=server1 ClientProfile=client1 Endpoint=10.9.0.1:443 Dest=10.9.0.2:443 \
		ServerName=example.com ServerAddress=10.78.0.1/24 ClientAddress=10.78.0.2/24
	sed -i "s|^RealityPrivateKey.*|$(grep ^RealityPrivateKey $QRE_CONFIG_DIR/server0.conf)|" $QRE_CONFIG_DIR/server1.conf
	sed -i "s|^RealityPublicKey.*|$(grep ^RealityPublicKey $QRE_CONFIG_DIR/client0.conf)|" $QRE_CONFIG_DIR/client1.conf
}

profile() {
	case $1 in
	a) echo server0 ;;
	a?) echo server$((${1:1} - 1)) ;;
	b) echo client0 ;;
	b?) echo client$((${1:1} - 1)) ;;
	esac
}

# daemon_start a|b: its service's files are in /tmp/service.a
daemon_start() {
	rm -rf /tmp/service.$1 # of a test before: that one was ready
	(
		cd /tmp || exit
		export QRE_GLOBAL_CONFIG=/tmp/e/${1:0:1}.conf
		setsid $PYTHON -m tests.support.service_manager /tmp/service.$1 \
			ip netns exec ${1:0:1} $PYTHON -c "from tests.support.guest_daemon import run; run()" daemon "$(profile $1)" \
			>/tmp/manager.$1 2>&1 &
		echo $! >/tmp/manager.$1.pid
	)
}

# The same again, with what the one before it left in its manager's store.
daemon_restart() {
	: >/tmp/service.$1/notified
	rm /tmp/service.$1/pid
	kill -USR1 "$(cat /tmp/manager.$1.pid)"
}

# Waits for READY=1 of $1, up to $2 seconds
daemon_ready() {
	local i
	for ((i = 0; i < $2; i++)); do
		grep -qs READY=1 /tmp/service.$1/notified && return 0
		[ ! -e /tmp/service.$1/pid ] || [ -e /proc/"$(cat /tmp/service.$1/pid)" ] || break
		sleep 1
	done
	tail -n 20 /tmp/manager.$1 /tmp/service.$1/said
	return 1
}

# Waits until the daemon $1 has the port itself, up to $2 seconds
has_port() {
	local i
	for ((i = 0; i < $2; i++)); do
		tac /tmp/service.$1/notified | grep -m 1 ^STATUS= | grep serving | grep -qv "another daemon" && return 0
		sleep 1
	done
	tail -n 20 /tmp/service.*/said
	return 1
}

# Waits for the client's session, up to $1 seconds
session_up() {
	local i
	for ((i = 0; i < $1; i++)); do
		[ -e /run/qb/client0.ready ] && return 0
		sleep 1
	done
	tail -n 20 /tmp/service.?/said
	return 1
}

# Both daemons and their session, each within $1 seconds
daemons_up() {
	daemon_start a
	daemon_start b
	daemon_ready a $1 && daemon_ready b $1 && session_up $1
}

# daemon_secrets a FILE: what the daemon knows of its sessions' keys; they are in no other place
daemon_secrets() {
	local each
	for each in /proc/"$(cat /tmp/service.$1/pid)"/fd/*; do
		case $(readlink $each) in "/memfd:session_secrets"*) cat $each >$2 && return 0 ;; esac
	done
	return 1
}

# SIGKILL for every process of the daemons in these namespaces, all at once, and for nothing else that runs there: one
# that lives for seconds longer than the other would change keys that nobody can follow
daemon_kill() {
	local each pid pids=
	for each in "$@"; do
		for pid in $(ip netns pids $each 2>/dev/null); do
			tr '\0' ' ' 2>/dev/null </proc/$pid/cmdline | grep -qE '^(iperf3|tcpdump)' || pids="$pids $pid"
		done
	done
	kill -9 $pids 2>/dev/null || true
}

# SIGTERM, and until it has ended
daemon_stop() {
	local pid i
	pid=$(cat /tmp/manager.$1.pid)
	kill -TERM "$pid"
	for ((i = 0; i < 120; i++)); do
		[ -e /proc/$pid ] || return 0
		sleep 0.5
	done
	return 1
}

# SIGKILL for the one daemon and its processes, which are a session of their own
service_kill() { pkill -9 -s "$(cat /tmp/service.$1/pid)"; }

show() { QRE_GLOBAL_CONFIG=/tmp/e/${1:0:1}.conf ip netns exec ${1:0:1} $QRE --json show "$(profile $1)"; }
