# From the package of the commit before to this one, while a VM runs.
vm web
serve web
boot=$(guest web cat /proc/sys/kernel/random/boot_id)
pid=$(cat $V/web/pid)
echo 'idle_timeout = "23m"' >>/etc/banger/config.toml
dpkg -i --force-confold "$LAB"/before/banger_*.deb
matches "^$(dpkg-query -W -f '${Version}' banger)\$" cat $M/version
was=$(cat $M/version)
is "$pid" cat $V/web/pid
dpkg -i --force-confold "$LAB"/banger_*.deb
matches "^$(dpkg-query -W -f '${Version}' banger)\$" cat $M/version
[ "$was" != "$(cat $M/version)" ] || fail "no upgrade: both are $was"
note "from $was to $(cat $M/version)"
is "$pid" cat $V/web/pid
vm web
is "$boot" guest web cat /proc/sys/kernel/random/boot_id
is 'I am web' curl -s --max-time 20 "http://$(cat $V/web/address)/"
matches 'idle_timeout 1380' cat $M/config
