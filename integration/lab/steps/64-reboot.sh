# A guest's reboot ends its machine at once, and the VM starts again. Without reboot=t a microvm
# under KVM would hang here.
vm db
before=$(guest db cat /proc/sys/kernel/random/boot_id)
began=$SECONDS
guest db reboot || :
within 30 grep -q ' the guest rebooted$' $V/db/events
note "its machine ended after $((SECONDS - began)) s"
within 60 grep -qx running $V/db/state
vm db
[ "$(guest db cat /proc/sys/kernel/random/boot_id)" != "$before" ] || fail "it has not rebooted"
is before guest db cat /work/state
