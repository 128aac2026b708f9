#!/bin/bash
# Runs in the guest: takes "number timeout script" lines (the script in base64), answers with frames.
export HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
stty raw -echo 2>/dev/null
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mkdir -p /run/netns
echo QRE-GUEST-READY
while read -r number seconds script; do
	base64 -d <<<"$script" >/tmp/script
	timeout -k 5 "$seconds" /bin/bash /tmp/script >/tmp/printed 2>&1 </dev/null
	status=$?
	printf '\nQRE-%s-BEGIN%s ' "$number" "$status"
	base64 -w 4000 /tmp/printed
	printf 'QRE-%s-END\n' "$number"
done
