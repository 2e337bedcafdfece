# The other machine, and several CPUs, with KVM. VMs that run stay what they are.
vm web
[ "$(cat $V/db/state)" = stopped ] || echo stop >$V/db/state
echo 'machine = "q35"' >>/etc/banger/config.toml
systemctl restart bangerd
vm pc cpus 2 memory 256M
note "q35 with 2 CPUs, boot to healthy: $(cat $V/pc/wait/healthy) s"
is 2 guest pc nproc
is kvm-clock guest pc cat /sys/devices/system/clocksource/clocksource0/current_clocksource
matches ' -M q35 -accel kvm ' qemus
matches ' -M microvm,[^ ]* -accel kvm ' qemus
is '2 different' sh -c "echo '$(cids)' | sort -u | wc -l | sed 's/\$/ different/'"
echo stop >$V/pc/state
rmdir $V/pc
sed -i '/^machine = /d' /etc/banger/config.toml
systemctl restart bangerd
