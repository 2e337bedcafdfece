#!/bin/bash
# Runs the steps of a lab on this host: those that are named, or all of steps/ in order. A step is
# a script for bash with the functions of lib.sh. It is ok if it ends with 0 within its time.
#
# On a host of your own, as root: the steps install banger, make VMs and remove both at the end.
# Nothing else that is called banger should be there.
set -u
here=$(dirname "$(realpath "$0")")
export LAB="$here"

if [ $# = 0 ]; then
	set -- $(cd "$here/steps" && ls | sed 's/^[0-9]*-//; s/\.sh$//')
fi

failed=()
tell() {
	echo "--- what step $1 printed"
	tail -n 60 "$here/$1.out"
	echo "--- the daemon's journal"
	journalctl -u bangerd -o short-precise --no-pager -n 60
	local vm
	for vm in /run/banger/vms/*/; do
		[ -d "$vm" ] || continue
		echo "--- $vm: $(timeout 5 cat "$vm/state" "$vm/health" | tr '\n' ' ')"
		timeout 5 cat "$vm/error"
		timeout 5 tail -n 15 "$vm/events"
		timeout 5 tail -n 5 "$vm/log" | cut -c1-400
		timeout 5 tail -n 15 "$vm/console"
	done
	echo "--- end of step $1"
}

# resets counts the guests that were reset. The emulated processor of make test-lab does that to a
# guest of KVM's now and then, in the middle of any step.
resets() { cat /run/banger/vms/*/events 2>/dev/null | grep -c ' the guest rebooted$' || :; }

attempt() {
	timeout -k 10 300 bash -eu -o pipefail -c '. "$0/lib.sh"; . "$1"' "$here" "$script" \
		>"$here/$step.out" 2>&1
}

for step; do
	script=$(echo "$here"/steps/[0-9]*-"$step".sh)
	[ -e "$script" ] || { echo "there is no step $step"; exit 2; }
	began=$(date +%s.%N)
	before=$(resets)
	attempt
	status=$?
	if [ $status != 0 ] && [ "$(resets)" -gt "$before" ]; then
		echo "             $step failed with $status, and a guest was reset: once more"
		tell "$step"
		attempt
		status=$?
	fi
	took=$(date +%s.%N | awk -v b="$began" '{printf "%.1f", $1 - b}')
	if [ $status = 0 ]; then
		printf '%-12s %6s s  ok\n' "$step" "$took"
		sed -n 's/^note: /             /p' "$here/$step.out"
		continue
	fi
	printf '%-12s %6s s  FAILED with %d\n' "$step" "$took" $status
	failed+=("$step")
	tell "$step"
done
if [ ${#failed[@]} != 0 ]; then
	echo "FAILED: ${failed[*]}"
	exit 1
fi
