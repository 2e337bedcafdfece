# A killed daemon is started again by systemd, and its VM never notices.
vm web
pid=$(cat $V/web/pid)
boot=$(guest web cat /proc/sys/kernel/random/boot_id)
main=$(systemctl show -P MainPID bangerd)
kill -9 $main
within 60 sh -c "cat $M/version && [ \$(systemctl show -P MainPID bangerd) != $main ]"
is $pid cat $V/web/pid
is "$boot" guest web cat /proc/sys/kernel/random/boot_id
systemctl restart bangerd
is $pid cat $V/web/pid
is "$boot" guest web cat /proc/sys/kernel/random/boot_id
matches 'adopted process' grep -a adopted $V/web/log
