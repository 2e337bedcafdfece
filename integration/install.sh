#!/bin/sh
# Installs what banger needs on Debian bookworm and is missing: packages with
# apt, and Go from bookworm-backports where there is none of version 1.21 or later.
# From that version on Go itself fetches the toolchain that go.mod names.
# It says what it does; with nothing missing it does nothing, without network.
#
#   install.sh          install what is missing
#   install.sh --tests  also what only the tests need
#   install.sh --bench  also what only the benchmarks need
#   install.sh --check  say what is missing, exit status 1 if anything is
#   install.sh --go     print the path of a good enough go, exit status 1 if there is none
set -eu

go_least=21 # of Go 1.x

# One line per package: a file that it brings, then its name. A command may come from another package, too.
needs='
qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils
mke2fs e2fsprogs
/bin/busybox busybox-static
fusermount3 fuse3
ip iproute2
nft nftables
jq jq
curl curl
python3 python3
vi vim-tiny
mke2fs e2fsprogs
mmdebstrap mmdebstrap
newuidmap uidmap
gcc gcc
/usr/include/stdio.h libc6-dev
man man-db
strace strace
ps procps
dpkg-deb dpkg
make make
git git
/etc/ssl/certs/ca-certificates.crt ca-certificates
'
test_needs='
promtool prometheus
openssl openssl
tmux tmux
ssh-keygen openssh-client
dropbear dropbear-bin
umoci umoci
docker-registry docker-registry
dbus-daemon dbus-daemon
syslinux syslinux
/usr/lib/syslinux/mbr/mbr.bin syslinux-common
mcopy mtools
mkfs.vfat dosfstools
sfdisk fdisk
bwrap bubblewrap
sshfs sshfs
/usr/lib/openssh/sftp-server openssh-sftp-server
inotifywait inotify-tools
systemd-analyze systemd
rpm rpm
/usr/lib/python3/dist-packages/yaml/__init__.py python3-yaml
slurmctld slurmctld
slurmd slurmd
sbatch slurm-client
munged munge
'
bench_needs='
ssh openssh-client
scp openssh-client
ssh-keygen openssh-client
dropbear dropbear-bin
dropbearconvert dropbear-bin
'
case ${1-} in
--tests) needs=$needs$test_needs ;;
--bench) needs=$needs$bench_needs ;;
esac

# good_go PATH: a go command that can fetch the toolchain that go.mod names.
good_go() {
	[ -x "$1" ] || return 1
	minor=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
	[ -n "$minor" ] && [ "$minor" -ge "$go_least" ]
}

# find_go prints the first good go: the one in PATH, then where others are installed.
find_go() {
	for go in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go-1.*/bin/go; do
		if good_go "$go"; then
			echo "$go"
			return 0
		fi
	done
	return 1
}

missing_packages() {
	echo "$needs" | while read -r file package; do
		case $file in
		'') continue ;;
		/*) [ -e "$file" ] || echo "$package" ;;
		*)
			# Users do not always have sbin in their PATH.
			PATH=$PATH:/usr/sbin:/sbin command -v "$file" >/dev/null || echo "$package"
			;;
		esac
	done
	# A busybox that is not static cannot run in a guest.
	if [ -e /bin/busybox ] && [ ! -e /usr/share/doc/busybox-static ]; then
		echo busybox-static
	fi
}

say() {
	echo "install.sh: $*" >&2
}

if [ "${1-}" = --go ]; then
	find_go
	exit
fi

packages=$(missing_packages | sort -u | tr '\n' ' ')
packages=${packages% }
go_missing=
find_go >/dev/null || go_missing=golang-1.23-go

# The built-in image's kernel is fetched with apt, which needs its lists for that.
lists_missing="apt's lists"
for file in "$(dirname "$0")"/../.cache/image/kernel/linux-image-*.deb /var/lib/apt/lists/*Packages*; do
	if [ -e "$file" ]; then
		lists_missing=
	fi
done

if [ -z "$packages$go_missing$lists_missing" ]; then
	exit 0
fi
if [ "${1-}" = --check ]; then
	say "missing: $packages $go_missing $lists_missing"
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	say "these packages are missing and only root can install them: $packages $go_missing $lists_missing"
	say "as root: $0"
	exit 1
fi
if ! command -v apt-get >/dev/null; then
	say "there is no apt-get here; install by other means: $packages $go_missing $lists_missing"
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
if [ -n "$go_missing" ]; then
	# Go comes from backports with a source of its own, unless one is configured.
	if ! grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
		# The mirror is the one that the machine uses already.
		mirror=$(grep -rhsoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d | head -n 1 | tr -d ' ')
		mirror=${mirror:-http://deb.debian.org/debian}
		list=/etc/apt/sources.list.d/banger-backports.list
		say "adds $mirror bookworm-backports to apt's sources, for Go ($list)"
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$list"
	fi
fi
say "refreshes apt's lists"
apt-get update -q
if [ -n "$packages" ]; then
	say "installs $packages"
	# shellcheck disable=SC2086 # a list of packages
	apt-get install -q -y --no-install-recommends $packages
fi
for service in prometheus docker-registry slurmctld slurmd munge; do
	case " $packages " in
	*" $service "*)
		# The tests start one of their own.
		if command -v systemctl >/dev/null; then
			say "disables the service $service, which its package starts"
			systemctl disable --now "$service" 2>/dev/null || :
		fi
		;;
	esac
done
if [ -n "$go_missing" ]; then
	say "installs $go_missing of bookworm-backports"
	apt-get install -q -y --no-install-recommends -t bookworm-backports "$go_missing"
fi

packages=$(missing_packages | sort -u | tr '\n' ' ')
if [ -n "$packages" ] || ! find_go >/dev/null; then
	say "still missing: $packages$(find_go >/dev/null || echo "Go 1.$go_least")"
	exit 1
fi
say "everything is installed"
