# banger doctor on a host that has everything, as root and as a user without a daemon of her own.
results() { "$@" banger doctor --json | jq -r '.[] | "\(.status) \(.name) \(.found); \(.remedy)"'; }
# A check has two seconds, which may be too few here.
examined() { results >/tmp/doctor.out 2>&1 && ! grep -q 'no answer within' /tmp/doctor.out; }
within 90 examined
cat /tmp/doctor.out
for name in daemon kvm qemu qemu-img mke2fs fuse tun nftables firewalld ufw docker resolved \
	vhost-vsock cgroup landlock seccomp oom memory disk busybox banger-agent; do
	grep -q "^ok $name " /tmp/doctor.out || fail "as root: $(grep " $name " /tmp/doctor.out)"
done
matches '/dev/kvm runs a guest of ten instructions, with svm' cat /tmp/doctor.out
matches 'ok cgroup version 2, with cpu, memory, pids, by systemd' cat /tmp/doctor.out
banger doctor >/dev/null || fail "it ends with $?"

# What a driver needs is missing.
modprobe -r kvm_amd
within 30 sh -c 'banger doctor | grep "^warn  kvm .*; modprobe kvm_amd"'
modprobe kvm_amd
within 30 sh -c 'banger doctor | grep "^ok    kvm"'

# nobody may open /dev/kvm only as a member of its group.
as_nobody() {
	results runuser -u nobody -- env XDG_RUNTIME_DIR=/nonexistent >/tmp/doctor.out 2>&1 || :
	! grep -q 'no answer within' /tmp/doctor.out
}
within 90 as_nobody
cat /tmp/doctor.out
matches 'warn kvm .*; sudo usermod -aG kvm nobody, and log in again' cat /tmp/doctor.out
matches 'ok fusermount3 ' cat /tmp/doctor.out
refused grep -qE '^[a-z]+ (tun|nftables|docker) ' /tmp/doctor.out
rm /tmp/doctor.out
