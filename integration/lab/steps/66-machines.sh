# The other machine, and several CPUs, with KVM.
echo stop >$V/db/state
vm pc machine q35 cpus 2 memory 256M
note "q35 with 2 CPUs, boot to healthy: $(cat $V/pc/wait/healthy) s"
is 2 guest pc nproc
is kvm-clock guest pc cat /sys/devices/system/clocksource/clocksource0/current_clocksource
matches ' -M q35 -accel kvm ' qemus
is "$(cids | wc -l)" sh -c "echo '$(cids)' | sort -u | wc -l"
echo stop >$V/pc/state
rmdir $V/pc
