# shellcheck shell=bash disable=SC2086,SC2034,SC1091
# What every script in the guest begins with: source it after /tmp/environment.
. /tmp/environment
A="ip netns exec a" B="ip netns exec b"
C=0909090909090909090909090909090909090909
ID=0707070707070707070707070707070707070707070707070707070707070707
K1=000102030405060708090a0b0c0d0e0f K2=101112131415161718191a1b1c1d1e1f
H1=202122232425262728292a2b2c2d2e2f H2=303132333435363738393a3b3c3d3e3f
I1=404142434445464748494a4b I2=505152535455565758595a5b

# Outer packets are of IPv4 unless this file says OVER=6.
OVER=4
[ ! -e /tmp/over_ip ] || . /tmp/over_ip
IP_A=10.9.0.1 IP_B=10.9.0.2
[ $OVER = 4 ] || IP_A=fd09::1 IP_B=fd09::2
# underlay LOCAL PORT PEER PORT: the fields of a session's outer addresses.
underlay() {
	echo "UnderlayLocalIPv$(version_of $1)=$1 UnderlayLocalPort=$2 UnderlayPeerIPv$(version_of $3)=$3 UnderlayPeerPort=$4"
}
version_of() { case $1 in *:*) echo 6 ;; *) echo 4 ;; esac; }

# until_true 'COMMAND…': waits for it to succeed; fails, and says what for, when it has not after $PATIENCE seconds.
until_true() {
	local end=$((SECONDS + ${PATIENCE:-120}))
	until eval "$1"; do
		if [ $SECONDS -ge $end ]; then
			echo "waited in vain for: $1"
			return 1
		fi
		sleep 0.1
	done
}

# until_listens NAMESPACE PORT: until a TCP socket there does.
until_listens() {
	until_true "ip netns exec $1 ss -Hltn | grep -q :$2"
}

# Two namespaces, joined by a veth pair.
pair_up() {
	ip netns add "$1"
	ip netns add "$2"
	ip link add "v$1" netns "$1" type veth peer name "v$2" netns "$2"
	ip -n "$1" addr add 10.9.0.1/24 dev "v$1"
	ip -n "$2" addr add 10.9.0.2/24 dev "v$2"
	ip -n "$1" addr add fd09::1/64 dev "v$1" nodad
	ip -n "$2" addr add fd09::2/64 dev "v$2" nodad
	for each in "$1 lo" "$1 v$1" "$2 lo" "$2 v$2"; do
		set -- $each
		ip -n "$1" link set "$2" up
	done
}

net_up() {
	pair_up a b
}

net_down() {
	for each in a b c d; do
		ip netns pids $each 2>/dev/null | xargs -r kill -9 || true
	done
	for each in a b c d; do
		ip netns del $each 2>/dev/null || true
	done
}

# Whether a packet number came twice under its key: numbers.c watches the pairs of these namespaces until it is told
# to sum up. Super-packets leave in parts there, as they do on a wire.
numbers_up() {
	local ends=()
	for each in "$@"; do
		ip netns exec $each ethtool -K v$each gso off tso off tx-udp-segmentation off
		ends+=("$each:v$each")
	done
	$TOOLS/numbers /tmp/ledger "${ends[@]}" >/tmp/numbers 2>&1 &
	echo $! >/tmp/numbers.pid
	until_true "grep -q watching /tmp/numbers"
}

numbers_down() {
	kill "$(cat /tmp/numbers.pid)"
	until_true "[ ! -e /proc/$(cat /tmp/numbers.pid) ]"
	cat /tmp/numbers
	rm -f /tmp/ledger
}

# Transmit keys are used once: a number makes others of them.
key() { printf '%08x%s' "$1" "${2:8}"; }

# One that no test of this guest had.
fresh_number() {
	local number
	number=$(($(cat /tmp/number 2>/dev/null || echo 500000) + 1))
	echo "$number" >/tmp/number
	echo "$number"
}

# A device qre0 in each namespace and one session between them, of keys number $1; further attributes of the two
# ends in MORE_A and MORE_B.
tunnel_up() {
	local t1 t2 over_a over_b
	t1=$(key "$1" $K1) t2=$(key "$1" $K2)
	over_a=$(underlay $IP_A 443 $IP_B 5555) over_b=$(underlay $IP_B 5555 $IP_A 443)
	$A $TOOLS/qrectl device-set Device=qre0 Role=1 MTU=1380
	$B $TOOLS/qrectl device-set Device=qre0 Role=2 MTU=1380
	$A $TOOLS/qrectl session-install Device=qre0 SessionId=$ID ConnectionId=$C ClientConnectionId= TxKey=$t1 RxKey=$t2 TxHpKey=$H1 \
		RxHpKey=$H2 TxIv=$I1 RxIv=$I2 KeyEpoch=0 PacketNumber=65536 \
		$over_a $MORE_A
	$B $TOOLS/qrectl session-install Device=qre0 SessionId=$ID ConnectionId=$C ClientConnectionId= TxKey=$t2 RxKey=$t1 \
		TxHpKey=$H2 RxHpKey=$H1 TxIv=$I2 RxIv=$I1 KeyEpoch=0 PacketNumber=65536 \
		$over_b $MORE_B
	ip -n a addr add 10.77.0.1/24 dev qre0
	ip -n b addr add 10.77.0.2/24 dev qre0
	ip -n a addr add fd77::1/64 dev qre0 nodad
	ip -n b addr add fd77::2/64 dev qre0 nodad
	ip -n a link set qre0 up
	ip -n b link set qre0 up
}
