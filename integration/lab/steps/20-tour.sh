# The tour of the README, with KVM.
mkdir $V/web
echo 192M >$V/web/memory
is 201326592 cat $V/web/memory
echo quiet >$V/web/cmdline
echo start >$V/web/state
note "boot to healthy: $(timeout 120 cat $V/web/wait/healthy) s"
matches ' -accel kvm ' grep -a 'qemu-system' $V/web/log
serve web
matches '^(tcp|http) +80 |
(tcp|http) +80 ' cat $V/web/ports
is 'I am web' curl -s --max-time 20 "http://$(cat $V/web/address)/"
cat $V/web/stats $V/web/events >/dev/null
jq . $V/web/ports.json $V/web/stats.json >/dev/null
echo pause >$V/web/state
is paused cat $V/web/state
echo resume >$V/web/state
is running cat $V/web/state
timeout 30 head -1 <$V/web/wait/events >$LAB/next &
reader=$!
until readlink /proc/$reader/fd/0 | grep -q events; do :; done
echo pause >$V/web/state
echo resume >$V/web/state
wait $reader
matches ' web state paus' cat $LAB/next
