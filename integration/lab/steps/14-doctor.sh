# banger doctor finds what this host has, and KVM by a guest of its own.
status=0
banger doctor >$LAB/doctor.out || status=$?
cat $LAB/doctor.out
[ $status = 0 ] || note "doctor ended with $status"
for check in daemon kvm qemu fuse tun nftables resolved vhost-vsock cgroup landlock; do
	grep -q "^ok *$check " $LAB/doctor.out || fail "$check is not ok"
done
jq -e . >/dev/null <<<"$(banger doctor --json)"
