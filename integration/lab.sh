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
# LAB_TIME is how long all may take, in seconds.
#
# The lab's Debian is kept in .cache/lab, by what it is made from. All else is in a directory below
# /tmp and goes at the end, as do the VM, the daemon and the namespaces.
set -eu
here=$(dirname "$(realpath "$0")")
top=$(dirname "$here")
cd "$top"

packages=linux-image-cloud-amd64,systemd,systemd-sysv,systemd-resolved,libnss-resolve
packages=$packages,systemd-timesyncd,libpam-systemd,dbus,dbus-user-session,udev
packages=$packages,qemu-system-x86,qemu-utils,e2fsprogs,busybox-static,fuse3,uidmap
packages=$packages,iproute2,nftables,procps,kmod,curl,jq,socat,openssh-client,cpio
recipe=1 # counts changes of how the packages are put together

say() {
	echo "lab: $*" >&2
}

# The first half runs as it was called, and reaches Debian's packages.
if [ "${LAB_INSIDE-}" = "" ]; then
	cache=$top/.cache/lab
	mkdir -p "$cache"
	key=$(echo "$recipe $packages" | sha256sum | cut -c1-16)
	root=$cache/$key.tar
	if [ ! -e "$root" ]; then
		say "makes the lab's Debian"
		rm -f "$cache"/*.tar "$cache"/*.part
		began=$(date +%s)
		# /var/cache/apt has the packages themselves, which no step needs.
		mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$root.part.tar"
		mv "$root.part.tar" "$root"
		say "made it in $(($(date +%s) - began)) s: $root"
	fi
	export LAB_INSIDE=1 LAB_ROOT="$root"
	if [ "$(id -u)" = 0 ]; then
		# Its network and its mount are seen here only.
		exec unshare --net --mount sh "$here/lab.sh" "$@"
	fi
	exec sh "$here/lab.sh" "$@"
fi

time=${LAB_TIME:-900}
tmp=$(mktemp -d /tmp/banger-lab.XXXXXX)
chmod 755 "$tmp"
daemon= work= watchdog=
export PATH="$tmp/bin:$PATH" BANGER_MOUNT="$tmp/mount"

clean() {
	status=$?
	trap '' INT TERM HUP
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
trap clean EXIT
trap 'say "interrupted"; exit 130' INT
trap 'say "ended"; exit 143' TERM HUP
trap 'say "took more than $time s"; exit 124' ALRM

# A signal ends `wait` at once, and no other command.
attend() {
	"$@" &
	work=$!
	wait "$work" && done=0 || done=$?
	work=
	return "$done"
}

mkdir "$tmp/bin" "$tmp/mount" "$tmp/lab"
cp bin/bangerd bin/banger bin/banger-agent "$tmp/bin/"
${GO:-go} run ./cmd/internal/mkimage -o "$tmp/state"
echo 'subnet = "10.213.0.0/24"' >"$tmp/config.toml" # the daemon inside has the default one
[ "$(id -u)" != 0 ] || ip link set lo up

# What goes in. A person puts the same on a host.
cp -r integration/lab/. "$tmp/lab/"
mkdir "$tmp/lab/programs"
cp bin/bangerd bin/banger bin/banger-agent "$tmp/lab/programs/"
cp -r .cache/image/builtin "$tmp/lab/builtin"

began=$(date +%s)
(sleep "$time" && kill -ALRM $$) &
watchdog=$!
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
attend banger cp "$tmp/lab" lab:/root/
say "the host is there after $(($(date +%s) - began)) s, by $(sed -n 's/.* accel=\([a-z]*\).*/\1/p' "$tmp/log")"
if attend banger exec lab -- /root/lab/run.sh "$@"; then
	say "all is well after $(($(date +%s) - began)) s"
	status=0
else
	status=$?
	say "FAILED after $(($(date +%s) - began)) s"
fi
if [ -n "${LAB_KEEP-}" ]; then
	kill "$watchdog"
	say "Ctrl-C ends the lab. To work in it:"
	say "nsenter -t $$ -m -n env PATH=$tmp/bin:\$PATH BANGER_MOUNT=$BANGER_MOUNT banger exec -it lab -- bash"
	wait "$daemon" || :
fi
exit "$status"
