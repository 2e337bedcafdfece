#!/bin/sh
# make run: a mounted tree with a VM `hello` that serves a page. Ctrl-C
# unmounts and leaves the VM running; the next run adopts it.
# BANGER_MOUNT and BANGER_STATE choose other directories than the daemon's own defaults.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ]; then
	mount=${BANGER_MOUNT:-/run/banger}
	state=${BANGER_STATE:-/var/lib/banger}
else
	mount=${BANGER_MOUNT:-${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/banger}
	state=${BANGER_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/banger}
fi
hello=$mount/vms/hello

bin/bangerd --mount "$mount" --state-dir "$state" &
daemon=$!
# An interrupted `wait` comes back here; the daemon unmounts and is then waited for.
trap 'kill -TERM "$daemon" 2>/dev/null || :' INT TERM HUP
trap 'kill -TERM "$daemon" 2>/dev/null || :; wait "$daemon" || :' EXIT

fail() {
	echo "make run: $*" >&2
	[ ! -s "$hello/error" ] || cat "$hello/error" >&2
	exit 1
}

# The mount is there when its version can be read. A daemon that ended has said why.
until [ -s "$mount/version" ] && cat "$mount/version" >/dev/null 2>&1; do
	kill -0 "$daemon" 2>/dev/null || exit 1
	sleep 0.1
done

bin/banger --mount "$mount" image builtin >/dev/null ||
	echo "make run: goes on with the built-in image of before" >&2

show() {
	echo "\$ cat vms/hello/$1"
	timeout 10 cat "$hello/$1" || :
	echo
}

page='mkdir -p /www; echo hello from a VM > /www/index.html; httpd -p 80 -h /www'

[ -d "$hello" ] || mkdir "$hello" || fail "cannot make the VM hello"
if [ "$(cat "$hello/state")" = running ]; then
	echo "The VM hello still runs; it was adopted."
else
	echo "Boots the VM hello ..."
	echo start >"$hello/state" || fail "cannot start hello"
fi
took=$(timeout 120 cat "$hello/wait/healthy") || fail "hello is not healthy after 120 s"
echo "Its agent answered $took s after the start."
if ! timeout 10 grep -q ' 80 ' "$hello/ports"; then
	echo "$page" >"$hello/console" || fail "cannot type into hello's console"
	timeout 30 cat "$hello/wait/tcp/80" >/dev/null || fail "nothing listens on port 80 of hello after 30 s"
fi

echo
cd "$mount" && ls vms/hello && cd - >/dev/null
echo
for file in state config stats health ports; do
	show "$file"
done
cat <<END
Type in another shell:

  cd $mount
  curl -s "\$(awk '\$1=="http"{print \$3; exit}' vms/hello/ports)"
  mkdir vms/web && cat vms/web/config
  echo start > vms/web/state && timeout 60 cat vms/web/wait/healthy
  echo 'uname -a' > vms/web/console; tail -5 vms/web/console
  cat list; cat events
  echo stop > vms/web/state; rmdir vms/web

Ctrl-C here unmounts and leaves the VMs running; the next make run adopts them.
END

wait "$daemon" || :
# A signal ends the first wait before the daemon has ended.
wait "$daemon" 2>/dev/null || :
trap - EXIT
