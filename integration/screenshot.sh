#!/bin/sh
# make screenshot: draws docs/top.svg and docs/top-vm.svg, what `banger top` shows of some real VMs.
# All runs in namespaces of its own: whatever happens, VMs, mounts and links end with them.
set -eu
cd "$(dirname "$0")/.."
columns=80 rows=24

if [ "${1-}" != inside ]; then
	[ "$(id -u)" = 0 ] || {
		echo "make screenshot: only root can make the namespaces" >&2
		exit 1
	}
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	chmod 755 "$dir" # VMMs run as other users
	timeout 120 unshare --mount --net --pid --fork --kill-child --mount-proc sh integration/screenshot.sh inside "$dir" &
	inside=$!
	trap 'kill $inside; wait $inside || :; exit 1' INT TERM HUP
	wait $inside
	for picture in "$dir"/*.screen; do
		name=$(basename "$picture" .screen)
		"${GO:-go}" run ./cmd/internal/svg $columns <"$picture" >"$dir/$name.svg"
		mv "$dir/$name.svg" docs/
	done
	exit
fi

dir=$2
trap 'exit 1' INT TERM HUP
export BANGER_MOUNT="$dir/mnt" LC_ALL=C.UTF-8
export PATH="$PWD/bin:$PATH"
vms=$BANGER_MOUNT/vms

ip link set lo up
mkdir -p "$dir/state/images"
cp -r .cache/image/builtin "$dir/state/images"
bangerd --mount "$BANGER_MOUNT" --state-dir "$dir/state" --config /dev/null 2>"$dir/log" &
daemon=$!

# The first sign of life is the mount's; a daemon that ended has said why.
until [ -s "$BANGER_MOUNT/version" ]; do
	kill -0 $daemon 2>/dev/null || {
		cat "$dir/log" >&2
		exit 1
	}
	sleep 0.1
done

for vm in api build cache db import site web; do
	mkdir "$vms/$vm"
done
echo 256M >"$vms/db/memory"
for vm in api build cache db import web; do
	echo start >"$vms/$vm/state"
done
kill -9 "$(cat "$vms/import/pid")"
for vm in api build cache db web; do
	cat "$vms/$vm/wait/healthy" >/dev/null
done

# Something to see: pages, a database's port, and work of different kinds.
page='mkdir -p /www; echo hi > /www/index.html; httpd'
echo "$page -p 80 -h /www; $page -p 8080 -h /www; nc -l -p 25 < /dev/null &" >"$vms/web/console"
echo "$page -p 8080 -h /www; while :; do i=0; while [ \$i -lt 40000 ]; do i=\$((i+1)); done; sleep 4; done &" >"$vms/api/console"
echo 'nc -l -p 5432 < /dev/null &' >"$vms/db/console"
echo 'while :; do i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; sleep 1; done &' >"$vms/build/console"
for port in web/wait/tcp/80 web/wait/tcp/8080 web/wait/tcp/25 api/wait/tcp/8080 db/wait/tcp/5432; do
	cat "$vms/$port" >/dev/null
done
echo pause >"$vms/cache/state"
while :; do
	curl -s -o /dev/null "http://$(cat "$vms/web/address")/" || :
	sleep 0.05
done &

screen() {
	tmux -S "$dir/tmux" "$@"
}

# until_shown PATTERN: waits until a line of the screen is like that.
until_shown() {
	until screen capture-pane -p | grep -Eq "$1"; do
		sleep 0.2
	done
}

screen -f /dev/null new-session -d -x $columns -y $rows 'banger top'
until_shown '^web .* [^ 0-9a-z]{10} ' # CPU over time is complete
screen send-keys End
until_shown '^web '
screen capture-pane -e -N -p >"$dir/top.screen"
screen send-keys Enter
until_shown '^http .*:80/'
screen capture-pane -e -N -p >"$dir/top-vm.screen"
