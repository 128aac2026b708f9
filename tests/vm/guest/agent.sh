#!/bin/bash
# Runs in the guest: takes "number timeout script" lines (the script in base64), answers with frames.
# $1 is the checkout. It and /usr are read through a mount that caches: without, Python takes a minute to start.
export HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
tag=$(mount | sed -n 's|^\(virtme[^ ]*\) on /run/cached .*|\1|p')
umount /run/cached
mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose "$tag" /run/cached
modules=$(readlink -f "/lib/modules/$(uname -r)")
for each in /usr "$1"; do mount --bind "/run/cached$each" "$each"; done
# virtme-ng linked the modules of a kernel that is not installed, where /usr now lies over it.
if [ ! -d "/lib/modules/$(uname -r)" ]; then
	mount -t tmpfs tmpfs /lib/modules
	ln -s "/run/cached$modules" "/lib/modules/$(uname -r)"
fi
stty raw -echo 2>/dev/null
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mkdir -p /run/netns
# The kernel patches its code whenever the first socket wants timestamps, and when the last one ends. QEMU's emulation
# of two processors sometimes runs the breakpoint that stood there in between, and the kernel dies of it ("Oops: int3"
# in netif_rx_internal). This socket is always there.
ip link set lo up
ping -q -i 86400 127.0.0.1 >/dev/null 2>&1 </dev/null &
echo QRE-GUEST-READY
while read -r number seconds script; do
	base64 -d <<<"$script" >/tmp/script
	timeout -k 5 "$seconds" /bin/bash /tmp/script >/tmp/printed 2>&1 </dev/null
	status=$?
	printf '\nQRE-%s-BEGIN%s ' "$number" "$status"
	base64 -w 4000 /tmp/printed
	printf 'QRE-%s-END\n' "$number"
done
