#!/bin/sh
# The init of TestClock's guest: bangerd with fake VMs, whose host's clock is set a day forward and a day back.
# It prints what it sees, with the monotonic time; the test judges.
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
insmod /fuse.ko
date -s @1790000000
ip link set lo up
S=/state M=/state/mnt
mkdir -p $S/images/builtin
: > $S/images/builtin/vmlinux
echo '{"kernel":"vmlinux","memory":134217728,"created":"2026-01-01T00:00:00Z"}' > $S/images/builtin/image.json

mono() { read -r now _ < /proc/uptime; echo $now; }

daemon() {
	/bangerd --mount $M --state-dir $S --config /dev/null --log-level warn --enable-fake-vmm &
	pid=$!
	until [ -e $M/version ]; do usleep 20000; done
}

# vm NAME IDLE_TIMEOUT: a new VM that runs
vm() {
	mkdir $M/vms/$1
	printf 'vmm fake\nidle_timeout %s\n' $2 > $M/vms/$1/config
	echo start > $M/vms/$1/state
}

# use PHASE NAME: renew its lease
use() {
	at=$(mono)
	touch $M/vms/$2/touched
	echo used $1 $2 $at
}

# sample PHASE
sample() {
	cd $M/vms
	at=$(mono)
	echo sample $1 $at $(date +%s) / $(cat idle/state kept/state oldidle/state) $(mono) / $(cat new/stats) / $(cat old/stats) / $(grep '^new ' ../list)
	cd /
}

# burst PHASE: many reads in a row
burst() {
	from=$(mono)
	for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19; do
		grep collected $M/vms/new/stats
	done > /burst
	echo burst $1 $(uniq /burst | wc -l) $from $(mono)
}

# jump PHASE SECONDS: the clock jumps, with VMs that this daemon started and VMs that it took over from another
jump() {
	daemon
	vm old max
	vm oldidle 15
	use $1 oldidle
	end=$((${at%.*} + 20))
	kill $pid
	wait $pid
	daemon
	vm new max
	vm idle 5
	vm kept 5
	sample $1-before
	usleep 700000
	sample $1-before
	use $1 idle
	use $1 kept
	date -s @$(($(date +%s) + $2)) > /dev/null
	echo jumped $1 $(mono)
	burst $1
	at=$(mono)
	[ $end -gt $((${at%.*} + 10)) ] || end=$((${at%.*} + 10))
	while [ ${at%.*} -lt $end ]; do
		use $1 kept
		sample $1
		usleep 200000
	done
	for v in old oldidle new idle kept; do
		echo kill > $M/vms/$v/state
		rmdir $M/vms/$v
	done
	kill $pid
	wait $pid
}

jump forward 86400
jump back -86400
echo clock done
exec sleep 1000000
