#!/bin/sh
# make test-lab: a real host made by banger itself. A Debian with QEMU boots as a VM of a daemon of
# this script's own. In it the processor has SVM, so that KVM, vhost-vsock, cgroup v2 and systemd
# are there. integration/lab/run.sh then installs banger in it and runs the steps of
# integration/lab/steps. Each prints its name, its time and ok or FAILED.
#
#   lab.sh              all steps
#   lab.sh STEP...      these steps, in the given order; install should be the first
#
# LAB_KEEP=1 leaves the VM running until Ctrl-C, and prints how to work in it.
# LAB_TIME is how long all may take, in seconds, the first making of the Debian aside.
#
# The lab's Debian is kept in .cache/lab, by what it is made from. All else is in a directory below
# /tmp and goes at the end, as do the VM, the daemon and the namespaces.
set -eu
here=$(dirname "$(realpath "$0")")
cd "$(dirname "$here")"

packages=linux-image-cloud-amd64,systemd,systemd-sysv,systemd-resolved,libnss-resolve
packages=$packages,systemd-timesyncd,libpam-systemd,dbus,dbus-user-session,udev
packages=$packages,qemu-system-x86,qemu-utils,e2fsprogs,busybox-static,fuse3,uidmap
packages=$packages,iproute2,nftables,procps,kmod,curl,jq,socat,openssh-client,cpio
recipe=1 # counts changes of how the packages are put together

say() {
	echo "lab: $*" >&2
}

daemon= work= watchdog=
clean() {
	status=$?
	trap '' INT TERM HUP ALRM
	trap - EXIT
	for pid in $work $watchdog; do
		kill "$pid" 2>/dev/null || :
	done
	if [ -n "$daemon" ]; then
		timeout 30 banger rm -f lab 2>/dev/null || :
		kill "$daemon" 2>/dev/null || :
		wait "$daemon" 2>/dev/null || :
		if [ "$status" != 0 ]; then
			say "the last lines of the daemon outside:"
			tail -n 20 "$tmp/log" >&2
		fi
		# Where all went well there is nothing to find.
		bangerd --cleanup --yes --mount "$tmp/mount" --state-dir "$tmp/state" \
			--config "$tmp/config.toml" >>"$tmp/log" 2>&1 || :
	fi
	rm -rf "$tmp"
	exit "$status"
}

# attend COMMAND...: runs it so that a signal to this script ends the wait for it, and the command.
attend() {
	"$@" &
	work=$!
	wait "$work" && done=0 || done=$?
	work=
	return "$done"
}

# make_before DIR: the package of the commit before, or of this one where a clone has no other. Its
# version is lower than that of any commit.
make_before() {
	before=$(git rev-parse -q --verify HEAD^ || echo HEAD)
	git cat-file -e "$before:contrib/package/package.sh" 2>/dev/null || before=HEAD
	mkdir -p "$tmp/before" "$1"
	git archive "$before" | tar -x -C "$tmp/before"
	version=$(sed -n 's/^## *//p' CHANGELOG.md | head -n 1)~before.$(git rev-parse --short "$before")
	attend make -s -C "$tmp/before" deb VERSION="$version" >"$tmp/before.log" 2>&1 || {
		cat "$tmp/before.log" >&2
		exit 1
	}
	mv "$tmp"/before/bin/banger_*.deb "$1/"
	rm -r "$tmp/before"
}

tmp=${LAB_TMP:-$(mktemp -d /tmp/banger-lab.XXXXXX)}
trap clean EXIT
trap 'say "interrupted"; exit 130' INT
trap 'say "ended"; exit 143' TERM HUP
trap 'say "took too long"; exit 124' ALRM

# The first half runs as it was called, and reaches packages and modules.
if [ -z "${LAB_TMP-}" ]; then
	mkdir -p .cache/lab
	root=$PWD/.cache/lab/$(echo "$recipe $packages" | sha256sum | cut -c1-16).tar
	if [ ! -e "$root" ]; then
		say "makes the lab's Debian"
		rm -f .cache/lab/*
		began=$(date +%s)
		attend mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$tmp/root.tar"
		mv "$tmp/root.tar" "$root.part"
		mv "$root.part" "$root"
		say "made it in $(($(date +%s) - began)) s: $root"
	fi
	LAB_BEGAN=$(date +%s)

	# What goes in. A person copies the same to a host.
	chmod 755 "$tmp"
	mkdir "$tmp/bin" "$tmp/mount"
	cp bin/bangerd bin/banger bin/banger-agent "$tmp/bin/"
	cp -r integration/lab "$tmp/lab"
	cp bin/banger_*.deb "$tmp/lab/"
	cp -r .cache/image/builtin "$tmp/lab/builtin"
	for test in qemu:./vmm/qemu agent:./cmd/banger-agent; do
		CGO_ENABLED=0 attend "${GO:-go}" test -c -o "$tmp/lab/${test%%:*}.test" "${test#*:}"
	done
	make_before "$tmp/lab/before"
	mkdir -p "$tmp/state/images"
	cp -r .cache/image/builtin "$tmp/state/images/"
	say "built what goes in, in $(($(date +%s) - LAB_BEGAN)) s"

	export LAB_TMP="$tmp" LAB_ROOT="$root" LAB_BEGAN
	if [ "$(id -u)" = 0 ]; then
		# The network and the mount are seen here only.
		exec unshare --net --mount sh "$here/lab.sh" "$@"
	fi
	exec sh "$here/lab.sh" "$@"
fi

age() { echo "$(($(date +%s) - LAB_BEGAN)) s"; }

(
	trap 'kill $!; exit' TERM
	sleep $((${LAB_TIME:-900} + LAB_BEGAN - $(date +%s))) &
	wait $! && kill -ALRM $$
) &
watchdog=$!
export PATH="$tmp/bin:$PATH" BANGER_MOUNT="$tmp/mount"
echo 'subnet = "10.213.0.0/24"' >"$tmp/config.toml" # the daemon inside has the default one
[ "$(id -u)" != 0 ] || ip link set lo up
bangerd --mount "$tmp/mount" --state-dir "$tmp/state" --config "$tmp/config.toml" 2>"$tmp/log" &
daemon=$!
until [ -s "$tmp/mount/version" ] && cat "$tmp/mount/version" >/dev/null 2>&1; do
	kill -0 "$daemon" 2>/dev/null || { say "the daemon does not start"; exit 1; }
	sleep 0.1
done
attend banger run lab -i "rootfs:$LAB_ROOT" -c 2 -m 5G --timeout 4m 2>"$tmp/progress" || {
	cat "$tmp/progress" "$tmp/mount/vms/lab/error" >&2
	exit 1
}
# In one stream: banger cp bounds the time of each file, which a busy machine may exceed.
carry() { tar -C "$tmp" -c lab | banger exec -i lab -- tar -C /root -x; }
attend carry
say "the host is there after $(age), by $(sed -n 's/.* accel=\([a-z]*\).*/\1/p' "$tmp/log")"
attend banger exec lab -- /root/lab/run.sh "$@" && status=0 || status=$?
if [ "$status" = 0 ]; then
	say "all is well after $(age)"
else
	say "FAILED after $(age)"
fi
if [ -n "${LAB_KEEP-}" ]; then
	kill "$watchdog"
	say "Ctrl-C ends the lab. To work in it:"
	say "nsenter -t $$ -m -n env PATH=$tmp/bin:\$PATH BANGER_MOUNT=$BANGER_MOUNT banger exec -it lab -- bash"
	wait "$daemon" || :
fi
exit "$status"
