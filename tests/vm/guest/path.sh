# shellcheck shell=bash disable=SC2086,SC1091
# A path between the ends that is narrower than their own links: a - x - y - b, with two routers. Source it after lib.sh.

# path_up MTU [silent]: silent routers drop what is too large without a word.
path_up() {
	local each
	for each in a b x y; do
		ip netns add $each
		ip -n $each link set lo up
	done
	ip link add va netns a type veth peer name xa netns x
	ip link add xy netns x type veth peer name yx netns y
	ip link add vb netns b type veth peer name yb netns y
	for each in "a va" "x xa" "x xy" "y yx" "y yb" "b vb"; do
		set -- "$1" "$2" $each
		ip -n $3 link set $4 mtu 9000 up
	done
	path_end a va 10.9.0.1 x xa 10.8.0.1
	path_end b vb 10.9.0.2 y yb 10.8.0.2
	path_end a va fd09::1 x xa fd08::1
	path_end b vb fd09::2 y yb fd08::2
	ip -n x addr add 10.7.0.1/30 dev xy
	ip -n y addr add 10.7.0.2/30 dev yx
	ip -n x addr add fd07::1/64 dev xy nodad
	ip -n y addr add fd07::2/64 dev yx nodad
	ip -n x route add 10.9.0.2 via 10.7.0.2
	ip -n y route add 10.9.0.1 via 10.7.0.1
	ip -n x route add fd09::2 via fd07::2
	ip -n y route add fd09::1 via fd07::1
	for each in x y; do
		ip netns exec $each sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		[ -z "$2" ] || silence $each
	done
	path_mtu "$1"
}

# silence NAMESPACE: it answers nothing with ICMP errors.
silence() {
	ip netns exec $1 nft -f - <<-END
		add table ip silent
		add chain ip silent out { type filter hook output priority 0; }
		add rule ip silent out icmp type destination-unreachable counter drop
		add table ip6 silent
		add chain ip6 silent out { type filter hook output priority 0; }
		add rule ip6 silent out icmpv6 type packet-too-big counter drop
	END
}

# path_end NAMESPACE DEVICE ADDRESS ROUTER ITS-DEVICE ITS-ADDRESS
path_end() {
	local bits=32 nodad=
	[ "$(version_of $3)" = 4 ] || bits=128 nodad=nodad
	ip -n $1 addr add $3/$bits dev $2 $nodad
	ip -n $4 addr add $6/$bits dev $5 $nodad
	ip -n $4 route add $3 dev $5
	ip -n $1 route add $6 dev $2
	ip -n $1 route add default via $6
}

# path_mtu MTU: of the link in the middle.
path_mtu() {
	ip -n x link set xy mtu $1
	ip -n y link set yx mtu $1
}

path_down() {
	net_down
	ip netns del x 2>/dev/null || true
	ip netns del y 2>/dev/null || true
}

# told NAMESPACE: its session's PathMtu and InnerMtu.
told() {
	ip netns exec $1 $TOOLS/qrectl sessions Device=qre0 | sed -n 's/^\(Path\|Inner\)Mtu=//p' | xargs
}

# until_told NAMESPACE PATHMTU SECONDS: how many milliseconds that took.
until_told() {
	local begun
	begun=$(date +%s%3N)
	while [ "$(told $1 | cut -d ' ' -f 1)" != "$2" ]; do
		if [ $(($(date +%s%3N) - begun)) -gt $(($3 * 1000)) ]; then
			echo "$1 has $(told $1), not $2, after $3 s"
			return 1
		fi
		sleep 0.05
	done
	echo $(($(date +%s%3N) - begun))
}

# inner_bytes NAMESPACE: that came out of the tunnel.
inner_bytes() { cat_in $1 /sys/class/net/qre0/statistics/rx_bytes; }
cat_in() { ip netns exec $1 cat "$2"; }

# until_flows NAMESPACE BYTES SECONDS: how many milliseconds it took until so many more had come.
until_flows() {
	local begun before
	begun=$(date +%s%3N) before=$(inner_bytes $1)
	while [ $(($(inner_bytes $1) - before)) -lt $2 ]; do
		if [ $(($(date +%s%3N) - begun)) -gt $(($3 * 1000)) ]; then
			echo "only $(($(inner_bytes $1) - before)) bytes came to $1 in $3 s"
			return 1
		fi
		sleep 0.05
	done
	echo $(($(date +%s%3N) - begun))
}
