# shellcheck shell=bash disable=SC2086,SC2034,SC1090,SC1091
# Tunnels between namespaces a and b for measuring side by side, all of them up at once over one veth pair: source it
# after lib.sh. All have qre0's MTU, so that their packets are of one size. NAME_up leaves the far end's address in FAR
# and its device's name in DEVICE.
MTU=1380

veth_up() {
	FAR=10.9.0.1 DEVICE=va
}

qre_up() {
	modprobe -a udp_tunnel ip6_udp_tunnel
	insmod $MODULE
	tunnel_up 1
	FAR=10.77.0.1 DEVICE=qre0
}

# The same over IPv6, beside it.
qre6_up() {
	qre6_end a 1 "$(key 2 $K1)" "$(key 2 $K2)" "$H1 $H2 $I1 $I2" 10.76.0.1 "$(underlay fd09::1 444 fd09::2 5556)"
	qre6_end b 2 "$(key 2 $K2)" "$(key 2 $K1)" "$H2 $H1 $I2 $I1" 10.76.0.2 "$(underlay fd09::2 5556 fd09::1 444)"
	FAR=10.76.0.1 DEVICE=qre6
}

# qre6_end NAMESPACE ROLE TXKEY RXKEY "TXHP RXHP TXIV RXIV" OWN UNDERLAY
qre6_end() {
	local namespace=$1 role=$2 tx=$3 rx=$4 own=$6 outer=$7
	set -- $5
	ip netns exec $namespace $TOOLS/qrectl device-set Device=qre6 Role=$role MTU=$MTU
	ip netns exec $namespace $TOOLS/qrectl session-install Device=qre6 SessionId=${ID//07/06} ConnectionId=${C//09/08} \
		ClientConnectionId= TxKey=$tx RxKey=$rx TxHpKey=$1 RxHpKey=$2 TxIv=$3 RxIv=$4 KeyEpoch=0 PacketNumber=65536 $outer
	ip -n $namespace addr add $own/24 dev qre6
	ip -n $namespace link set qre6 up
}

wireguard_up() {
	modprobe wireguard
	(umask 077 && wg genkey >/tmp/wg.a && wg genkey >/tmp/wg.b)
	wireguard_end a 10.78.0.1 10.78.0.2 "$(wg pubkey </tmp/wg.b)" 10.9.0.2
	wireguard_end b 10.78.0.2 10.78.0.1 "$(wg pubkey </tmp/wg.a)" 10.9.0.1
	FAR=10.78.0.1 DEVICE=wg0
}

# wireguard_end NAMESPACE OWN FAR KEY ENDPOINT
wireguard_end() {
	ip -n $1 link add wg0 mtu $MTU type wireguard
	ip netns exec $1 wg set wg0 listen-port 51820 private-key /tmp/wg.$1 \
		peer "$4" allowed-ips $3/32 endpoint $5:51820
	ip -n $1 addr add $2/24 dev wg0
	ip -n $1 link set wg0 up
}

dco_up() {
	local a b
	modprobe -a udp_tunnel ip6_udp_tunnel
	insmod $DCO
	for each in a b; do
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$each -days 2 \
			-keyout /tmp/ovpn.$each.key -out /tmp/ovpn.$each.crt 2>/dev/null
	done
	a=$(openvpn_fingerprint a) b=$(openvpn_fingerprint b)
	openvpn_end a "$b" --mode server --tls-server --dh none --local 10.9.0.1 --port 1194 --topology subnet \
		--ifconfig 10.79.0.1 255.255.255.0 --ifconfig-pool 10.79.0.2 10.79.0.9 --push "topology subnet"
	openvpn_end b "$a" --client --remote 10.9.0.1 1194 --nobind
	for _ in $(seq 60); do
		if $B ping -c 1 -W 1 -q 10.79.0.1 >/dev/null 2>&1; then
			ip -n a -d link show tun0 | grep -q ovpn-dco || openvpn_failed "openvpn runs without its module"
			ip -n b -d link show tun0 | grep -q ovpn-dco || openvpn_failed "openvpn runs without its module"
			FAR=10.79.0.1 DEVICE=tun0
			return 0
		fi
		sleep 1
	done
	openvpn_failed "openvpn did not connect"
}

openvpn_fingerprint() { openssl x509 -in /tmp/ovpn.$1.crt -noout -fingerprint -sha256 | sed 's/.*=//'; }

# openvpn_end NAMESPACE FINGERPRINT OPTIONS...
openvpn_end() {
	local namespace=$1 fingerprint=$2
	shift 2
	ip netns exec $namespace openvpn --daemon --log /tmp/ovpn.$namespace.log --dev tun0 --dev-type tun --proto udp4 \
		--tun-mtu $MTU --mssfix 0 --cert /tmp/ovpn.$namespace.crt --key /tmp/ovpn.$namespace.key \
		--peer-fingerprint "$fingerprint" --data-ciphers AES-128-GCM --allow-compression no "$@"
}

openvpn_failed() {
	tail -n 20 /tmp/ovpn.?.log
	echo "$1"
	return 1
}

bench_begin() {
	net_up
	$A iperf3 -s -D
	$A $TOOLS/blast 9 >/dev/null 2>&1 &
}

bench_up() {
	"$1_up"
	$B ping -c 3 -i 0.2 -W 2 -q $FAR >/dev/null || { echo "no ping through it"; return 1; }
	printf 'FAR=%s DEVICE=%s\n' $FAR $DEVICE >/tmp/bench.$1
}

# bench_tcp TUNNEL SECONDS STREAMS: iperf3's JSON
bench_tcp() {
	. /tmp/bench.$1
	$B iperf3 -c $FAR -t "$2" -P "$3" -J
}

# bench_udp TUNNEL MILLISECONDS SIZE: "sent N microseconds T", then what arrived
bench_udp() {
	local before after
	. /tmp/bench.$1
	before=$($A cat /sys/class/net/$DEVICE/statistics/rx_packets)
	$B $TOOLS/blast $FAR 9 "$2" "$3"
	sleep 0.2
	after=$($A cat /sys/class/net/$DEVICE/statistics/rx_packets)
	echo "arrived $((after - before))"
}

# bench_ping TUNNEL COUNT
bench_ping() {
	. /tmp/bench.$1
	$B ping -c "$2" -i 0.01 -W 2 -q $FAR
}
