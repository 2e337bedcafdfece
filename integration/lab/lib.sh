# Functions of the steps. A step runs with bash -eu -o pipefail.

M=/run/banger
V=$M/vms
cd / # a directory of the mount would not outlive the daemon

# fail WORDS: ends the step.
fail() {
	echo "FAILED: $*" >&2
	exit 1
}

# note WORDS: a measure, which is printed with the step's line.
note() { echo "note: $*"; }

# is WANT COMMAND...: what the command prints.
is() {
	local want=$1 got
	shift
	got=$("$@") || fail "$*: ended with $?: $got"
	[ "$got" = "$want" ] || fail "$*: printed '$got', not '$want'"
}

# matches REGEXP COMMAND...: all that the command prints matches the extended regular expression.
matches() {
	local want=$1 got
	shift
	got=$("$@") || fail "$*: ended with $?: $got"
	[[ $got =~ $want ]] || fail "$*: printed '$got', which does not match '$want'"
}

# refused COMMAND...: the command fails.
refused() {
	if "$@"; then
		fail "$*: succeeded"
	fi
}

# within SECONDS COMMAND...: repeats the command until it succeeds.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "not in time: $*"
		sleep 0.2
	done
}

# vm NAME [SETTING VALUE]...: a healthy VM, made and started if it is not there. Its kernel prints
# little: with KVM in an emulated host each byte on the console costs half a millisecond.
vm() {
	local name=$1
	shift
	[ -d $V/$name ] || mkdir $V/$name
	if [ "$(cat $V/$name/state)" != running ]; then
		echo quiet >$V/$name/cmdline
		while [ $# != 0 ]; do
			echo "$2" >$V/$name/$1
			shift 2
		done
		echo start >$V/$name/state || fail "$name: $(cat $V/$name/error)"
	fi
	timeout 120 cat $V/$name/wait/healthy >/dev/null || fail "$name is not healthy"
}

# guest NAME COMMAND...: runs a command in a guest.
guest() {
	local name=$1
	shift
	timeout 60 banger exec "$name" -- "$@"
}

# serve NAME: the guest has a page that says its name, on port 80.
serve() {
	[ "$(timeout 10 banger exec "$1" -- wget -qO- http://127.0.0.1/ 2>/dev/null)" = "I am $1" ] && return
	guest "$1" sh -c "mkdir -p /www; echo I am $1 >/www/index.html; httpd -p 80 -h /www"
	timeout 60 cat $V/"$1"/wait/tcp/80 >/dev/null || fail "$1 does not serve"
}

# qemus: the command lines of all QEMUs.
qemus() { ps -ww -C qemu-system-x86_64,qemu-system-x86 -o args= || :; }

# cids: the vsock addresses of all guests.
cids() { qemus | grep -o 'guest-cid=[0-9]*' | cut -d= -f2; }
