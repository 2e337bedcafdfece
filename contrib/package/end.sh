#!/bin/sh
# /usr/lib/banger/end, which removal of the package runs: shuts down the VMs of root's daemon, ends
# the daemon, and removes what both left on the host. The state directory stays. A VM that has not
# shut down after a minute is killed.
set -u
mount=/run/banger

stop_vms() {
	for vm in "$mount"/vms/*/; do
		case $(cat "$vm/state" 2>/dev/null) in
		running | paused) (echo stop >"$vm/state") 2>/dev/null & ;;
		esac
	done
	wait
}

if [ "${1-}" = stop-vms ]; then
	stop_vms
	exit
fi
if [ -d /run/systemd/system ]; then
	systemctl stop 'banger@*.service'
fi
# A daemon that does not answer must not hold up the removal.
timeout --kill-after=5 60 sh "$0" stop-vms
if [ -d /run/systemd/system ]; then
	systemctl stop bangerd.service
fi
/usr/bin/bangerd --cleanup --yes || {
	echo "banger: this host is not cleaned up; remedy that and remove banger again" >&2
	exit 1
}
if [ -d /run/systemd/system ]; then
	systemctl stop banger.slice 2>/dev/null
fi
rmdir "$mount" 2>/dev/null
exit 0
