# limits/ are what the kernel enforces, in a cgroup of version 2 that systemd made.
vm web
group=/sys/fs/cgroup$(sed 's/^0:://' /proc/$(cat $V/web/pid)/cgroup)
matches 'banger\.slice/' echo $group
for w in 'cpu.max 20000 100000' 'memory.max 512M' 'pids.max 100' 'cpu.weight 50'; do
	echo "${w#* }" >$V/web/limits/${w%% *} || fail "$w: $(cat $V/web/error)"
done
is '20000 100000' cat $group/cpu.max
is 536870912 cat $group/memory.max
is 100 cat $group/pids.max
is 50 cat $group/cpu.weight

# The guest gets a fifth of a CPU, and what it used is counted.
was=$(sed -n 's/^usage_usec //p' $group/cpu.stat)
guest web sh -c 'timeout 3 sh -c "while :; do :; done"' || :
used=$(($(sed -n 's/^usage_usec //p' $group/cpu.stat) - was))
throttled=$(sed -n 's/^throttled_usec //p' $group/cpu.stat)
note "used ${used} us in 3 s of a loop, throttled for $throttled us"
[ "$throttled" -gt 1000000 ] || fail "throttled for $throttled us only"
echo max >$V/web/limits/cpu.max
is 'max 100000' cat $group/cpu.max
